"""One client connection: httptools parses, this class bounds, orders and answers.

Requests of a connection are answered one after the other, in their order. A request that breaks a rule is
answered in its turn, and then the connection ends: what follows on it is not trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import httptools

from deployments.gateway.http.message import Request
from deployments.gateway.http.rules import (
    Refused,
    add_again,
    check_head,
    check_method,
    has_body,
    path_of,
    too_large,
)
from deployments.gateway.http.wire_reply import WireReply, refusal

if TYPE_CHECKING:
    from deployments.gateway.http.listener import Listener

logger = logging.getLogger("ray.serve")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

LINGER_S = 2.0

OVERHEAD_OF_CHUNKS = 8
"""Bytes on the wire per byte of body: chunks of one byte need 6, the rest would be chunk extensions."""


@dataclass(slots=True)
class _Message:
    """A request on its way in."""

    url: bytes = b""
    header_bytes: int = 0
    headers_done: bool = False
    received_bytes: int = 0
    overhead_bytes: int = 0
    """Since the headers, or the last byte of the body: extensions of chunks, trailers."""

    method: str = ""
    version: str = ""
    keep_alive: bool = False
    awaits_continue: bool = False
    is_cut_short: bool = False
    """The parser ended it before its body."""


class HttpConnection(asyncio.Protocol):
    """Made by `Listener` for each accepted socket. `deadline_s` (of the loop's clock) is when `expire` is
    to be called."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._loop = listener.loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # from connection_made on
        self._parser = httptools.HttpRequestParser(self)
        self._message: _Message | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._held_body_bytes = 0
        self._waiting: deque[tuple[Request, _Message] | Refused] = deque()
        self._reply: WireReply | None = None
        self._task: asyncio.Task[None] | None = None
        self._deaf = False  # nothing that still comes is read
        self._closing = False
        self._reading_paused = False
        self._writing_paused = False
        self.peer = ""
        self.deadline_s = inf

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        self.deadline_s = self._loop.time() + self._limits.idle_s
        if not self._listener.admit(self):
            self._refuse(Refused(503, "too_many_connections", "Too many connections are open."))
            self._next()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (protocol)
        self._listener.forget(self)
        self._hold(0)
        self._deaf = True
        self._waiting.clear()
        if self._reply is not None:
            self._reply.detach()
            self._reply = None
        if self._task is not None and not self._task.done():
            self._task.cancel()
        # It holds this object: without this only the garbage collector would end both.
        self._parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        message = self._message
        if message is not None:
            message.received_bytes += len(data)
            message.overhead_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(Refused(400, "malformed_request", f"The request is not HTTP/1.1: {error}."))
        if not self._deaf:
            self._check_sizes()
        if self._waiting:
            if self._reply is None:
                self._next()
            else:
                self._stop_reading()

    def _feed(self, data: bytes) -> None:
        """An upgrade is not followed: the request is answered in HTTP/1.1, as the last of its connection. The
        parser takes such a request for complete at the end of its headers. Where it has a body, another
        parser is told how that is framed."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            message = self._message
            if message is None or not message.is_cut_short:
                self._deaf = True
                return
            message.is_cut_short = False
            length = self._headers.get(b"content-length")
            framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
            self._parser = httptools.HttpRequestParser(self)
            self._deaf = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
            self._deaf = False
            with suppress(httptools.HttpParserUpgrade):  # of a request after it, which is not seen
                self._parser.feed_data(data[upgrade.args[0] :])

    def pause_writing(self) -> None:
        self._writing_paused = True
        self.deadline_s = self._loop.time() + self._limits.stalled_s
        if self._reply is not None:
            self._reply.hold_back()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._closing or self._transport.is_closing():
            return
        if self._reply is not None:
            self.deadline_s = inf
            self._reply.go_on()
        else:
            self._next()

    # httptools

    def on_message_begin(self) -> None:
        if self._deaf:
            return
        self._message = _Message()
        self._headers = {}
        self._body = b""
        if self._reply is None:
            self.deadline_s = self._loop.time() + self._limits.head_s

    def on_url(self, url: bytes) -> None:
        message = self._message
        if message is not None and not self._deaf:
            message.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self._message
        if message is None or self._deaf:
            return
        message.header_bytes += len(name) + len(value) + 4
        if message.headers_done:
            return  # a trailer: counted, not believed
        name, value = name.lower(), value.rstrip(b" \t")  # the parser takes the white space before it
        if name not in self._headers:
            self._headers[name] = value
            return
        try:
            add_again(self._headers, name, value)
        except Refused as refused:
            self._refuse(refused)

    def on_headers_complete(self) -> None:
        message = self._message
        if message is None or self._deaf:
            return
        parser = self._parser
        message.headers_done = True
        message.method = parser.get_method().decode("latin-1")
        message.version = parser.get_http_version()
        message.overhead_bytes = 0
        upgrades = parser.should_upgrade()
        message.keep_alive = parser.should_keep_alive() and not upgrades
        try:
            check_method(message.method)
            awaits_continue = check_head(
                message.version, self._headers, message.header_bytes, len(message.url), self._limits
            )
        except Refused as refused:
            self._refuse(refused)
            return
        message.is_cut_short = upgrades and has_body(self._headers)
        if self._reply is None and not self._waiting:
            self.deadline_s = self._loop.time() + self._limits.body_s
            if awaits_continue:
                self._transport.write(CONTINUE)
        else:
            message.awaits_continue = awaits_continue  # its turn has not come

    def on_body(self, body: bytes) -> None:
        message = self._message
        if message is None or self._deaf:
            return
        message.overhead_bytes = 0
        if len(self._body) + len(body) > self._limits.body_bytes:
            self._refuse(too_large(self._limits))
        elif not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        message = self._message
        if message is None or self._deaf or message.is_cut_short:
            return
        self._message = None
        # The first of this packet is not yet answered, but waits for no other.
        if len(self._waiting) >= self._limits.pipelined + (self._reply is None):
            self._refuse(Refused(400, "too_many_pipelined", "Too many requests before the first answer."))
            return
        try:
            path, query = path_of(message.url)
        except Refused as refused:
            self._refuse(refused)
            return
        request = Request(message.method, path, query, self._headers, bytes(self._body), self.peer)
        self._headers, self._body = {}, b""
        if self._held_body_bytes:
            self._hold(0)
        self._waiting.append((request, message))
        if not message.keep_alive:
            self._deaf = True

    # Rules

    def _check_sizes(self) -> None:
        message = self._message
        if message is None:
            return
        if not message.headers_done:
            if max(message.received_bytes, message.header_bytes + len(message.url)) > self._limits.head_bytes:
                self._refuse(Refused(431, "headers_too_large", "The request's headers are too large."))
        elif message.received_bytes > OVERHEAD_OF_CHUNKS * self._limits.body_bytes + self._limits.head_bytes:
            self._refuse(too_large(self._limits))
        elif message.overhead_bytes > self._limits.head_bytes:
            self._refuse(
                Refused(431, "headers_too_large", "The body's extensions or trailers are too large.")
            )
        elif self._body:
            self._hold(len(self._body))
            if self._listener.held_body_bytes > self._limits.held_body_bytes:
                self._refuse(
                    Refused(503, "too_many_bodies", "Too much is being sent at once. Try again later.")
                )

    def _hold(self, body_bytes: int) -> None:
        """Of a body that did not come in one packet."""
        self._listener.held_body_bytes += body_bytes - self._held_body_bytes
        self._held_body_bytes = body_bytes

    def _refuse(self, refused: Refused) -> None:
        """In its turn; it is the last answer of this connection."""
        if self._message is not None:
            path = self._message.url.partition(b"?")[0].decode("latin-1")
            refused = replace(refused, path=path)
        if self._held_body_bytes:
            self._hold(0)
        self._message = None
        self._headers, self._body = {}, b""
        self._deaf = True
        self._waiting.append(refused)

    def expire(self) -> None:
        """`deadline_s` is over."""
        if self._writing_paused or self._closing:
            self._transport.abort()
        elif self._reply is not None:
            self.deadline_s = inf
        elif self._message is None:
            self.close()
        else:
            what = "body" if self._message.headers_done else "headers"
            self._refuse(Refused(408, "request_timeout", f"The request's {what} did not arrive in time."))
            self._next()

    # Answers, one after the other

    def _next(self) -> None:
        """Nothing is being answered: begin with what waits. Not while the client leaves its answers unread:
        more of them would pile up here."""
        if not self._waiting and (self._deaf or self._listener.draining):
            self.close()
            return
        if self._writing_paused:
            self._stop_reading()
            return
        if not self._waiting:
            self._listen_on()
            return
        first = self._waiting.popleft()
        if isinstance(first, Refused):
            self._transport.write(refusal(first, self._listener.refusal_body(first)))
            self._linger()
            return
        request, message = first
        self.deadline_s = inf
        self._reply = WireReply(
            self,
            self._transport,
            is_1_0=message.version == "1.0",
            without_body=message.method == "HEAD",
            close=not message.keep_alive,
        )
        self._task = self._loop.create_task(self._answer(request, self._reply))

    def _linger(self) -> None:
        """Close, and take what the client still sends: closed with unread bytes, the kernel resets the
        connection, and the client may never see its answer."""
        if not self._transport.can_write_eof():  # TLS
            self.close()
            return
        self._closing = True
        self.deadline_s = self._loop.time() + LINGER_S
        self._transport.write_eof()
        self._read_on()

    def _listen_on(self) -> None:
        now_s = self._loop.time()
        message = self._message
        if message is None:
            self.deadline_s = now_s + self._limits.idle_s
        else:  # it has begun while the one before was answered
            self.deadline_s = now_s + (self._limits.body_s if message.headers_done else self._limits.head_s)
            if message.awaits_continue:
                message.awaits_continue = False
                self._transport.write(CONTINUE)
        self._read_on()

    def _stop_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    async def _answer(self, request: Request, reply: WireReply) -> None:
        try:
            await self._listener.handler(request, reply)
        except asyncio.CancelledError:
            pass  # the client has gone, or the gateway ends
        except Exception:
            logger.exception("unexpected error in %s %s", request.method, request.path[:200])
        finally:
            if not reply.ended:
                reply.abort()

    def replied(self, *, keep_alive: bool) -> None:
        """The reply has ended."""
        self._reply = None
        if self._transport.is_closing():
            return
        if keep_alive and not self._listener.draining:
            self._next()
        else:
            self._deaf = True
            self._waiting.clear()
            if self._reading_paused:  # unread bytes: see _linger
                self._linger()
            else:
                self.close()

    # For the listener

    @property
    def is_idle(self) -> bool:
        """Between two requests."""
        return self._reply is None and not self._waiting and self._message is None

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._task

    @property
    def draining(self) -> bool:
        return self._listener.draining

    @property
    def date(self) -> str:
        return self._listener.date

    def close(self) -> None:
        """After what is written has left; not later than `stalled_s`."""
        self._closing = True
        self.deadline_s = self._loop.time() + self._limits.stalled_s
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
