"""`Reply` as bytes of HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

import orjson

from cluster.errors import SpratError
from deployments.gateway.http.message import Source
from deployments.gateway.http.rules import Refused

STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in HTTPStatus} | {
    499: "HTTP/1.1 499 Client Closed Request\r\n"
}


class Connection(Protocol):
    """What a reply needs of its connection."""

    @property
    def draining(self) -> bool: ...

    @property
    def date(self) -> str: ...

    def replied(self, *, keep_alive: bool) -> None: ...


class WireReply:
    """`Reply` to the request that its connection is at."""

    __slots__ = (
        *("_close", "_connection", "_is_1_0", "_is_chunked", "_kept_head", "_source", "_transport"),
        *("_held_back", "_without_body", "ended", "started"),
    )

    def __init__(
        self,
        connection: Connection,
        transport: asyncio.Transport,
        *,
        is_1_0: bool,
        without_body: bool,
        close: bool,
    ) -> None:
        self._connection: Connection | None = connection
        self._transport = transport
        self._is_1_0 = is_1_0
        self._without_body = without_body
        self._close = close
        self._is_chunked = False
        self._kept_head = b""
        self._source: Source | None = None
        self._held_back = False
        self.started = False
        self.ended = False

    def respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if self._connection is None or self.ended:
            return
        self.started = True
        head = self._head(status, headers, f"content-length: {len(body)}\r\n")
        self._transport.write(head if self._without_body else head + body)
        self._end()

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        if self._connection is None or self.ended:
            return
        self.started = True
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the answer.
        self._is_chunked = not self._is_1_0
        self._close = self._close or self._is_1_0
        framing = "transfer-encoding: chunked\r\n" if self._is_chunked else ""
        self._kept_head = self._head(status, headers, framing)

    def write(self, data: bytes) -> None:
        if not data or self._connection is None or self.ended:
            return
        head, self._kept_head = self._kept_head, b""
        if self._without_body:
            self._transport.write(head)
        elif self._is_chunked:
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        else:
            self._transport.write(head + data)

    def end(self) -> None:
        if self._connection is None or self.ended:
            return
        head, self._kept_head = self._kept_head, b""
        last = b"0\r\n\r\n" if self._is_chunked and not self._without_body else b""
        if head or last:
            self._transport.write(head + last)
        self._end()

    def abort(self) -> None:
        self.ended = True
        self._source = None
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.abort()

    def take_from(self, source: Source) -> None:
        self._source = source
        if self._held_back:
            source.pause()

    # For the connection

    def hold_back(self) -> None:
        self._held_back = True
        if self._source is not None:
            self._source.pause()

    def go_on(self) -> None:
        self._held_back = False
        if self._source is not None:
            self._source.resume()

    def detach(self) -> None:
        """The connection is lost."""
        self._connection = None
        self._source = None

    def _end(self) -> None:
        self.ended = True
        self._source = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.replied(keep_alive=not self._close)

    def _head(self, status: int, headers: Mapping[str, str], framing: str) -> bytes:
        connection = self._connection
        self._close = self._close or connection is None or connection.draining
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header of an answer holds a line break")
        ours = f"{STATUS_LINES[status]}server: sprat\r\ndate: {connection.date if connection else ''}\r\n"
        kept = ""
        if self._close:
            kept = "connection: close\r\n"
        elif self._is_1_0:
            kept = "connection: keep-alive\r\n"
        return f"{ours}{lines}{framing}{kept}\r\n".encode("latin-1", "replace")


def refusal(refused: Refused, body: bytes) -> bytes:
    """The last answer of a connection."""
    head = (
        f"{STATUS_LINES[refused.status]}server: sprat\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


def error_of(refused: Refused) -> SpratError:
    """The same as one of our errors, for every dialect."""
    error = SpratError(refused.message, code=refused.code)
    error.status = refused.status
    if refused.status < SpratError.status:
        error.error_type = "invalid_request_error"
    return error


def refusal_body(refused: Refused) -> bytes:
    """In OpenAI's shape of errors."""
    return orjson.dumps(error_of(refused).to_openai())
