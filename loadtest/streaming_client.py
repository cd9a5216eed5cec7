"""One call to an OpenAI-compatible endpoint → its timings, with every error as a value.

Times are taken when bytes arrive from the socket, before anything is parsed, and bytes are read as they
come: a reader that fills blocks of 1 kB first reports a TTFT that is seconds late for small chunks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

import httptools

from loadtest.answer_reader import AnswerReader
from loadtest.call import Call, CallError, ErrorKind

DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom to call. `path_prefix` is what stands before `/v1` in the URL, mostly nothing."""

    host: str
    port: int
    path_prefix: str
    api_key: str

    @classmethod
    def of(cls, url: str, api_key: str) -> Endpoint:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"url {url!r}: use http://host:port")
        return cls(parts.hostname, parts.port or 80, parts.path.rstrip("/"), api_key)

    def request(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST. Build them once and send them often."""
        head = (
            f"POST {self.path_prefix}{path} HTTP/1.1\r\n"
            f"host: {self.host}:{self.port}\r\n"
            f"authorization: Bearer {self.api_key}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body


class StreamingClient:
    """One keep-alive connection that makes one call at a time. It never retries: what fails is counted.

    Connecting is not part of a call's times: it happens before the request is written.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None

    async def call(self, request: bytes) -> Call:
        connection = self._connection
        reused = connection is not None and connection.is_open
        if connection is None or not reused:
            started_s = perf_counter()
            try:
                connection = await self._connect()
            except (OSError, TimeoutError) as error:
                self._connection = None
                failure = CallError(ErrorKind.CONNECT, str(error) or type(error).__name__)
                return Call(status=0, done_s=perf_counter() - started_s, error=failure)
            self._connection = connection
        return await connection.exchange(request, self._timeout_s, reused=reused)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_s):
            _, connection = await loop.create_connection(
                _Connection, self._endpoint.host, self._endpoint.port
            )
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection(asyncio.Protocol):
    """Both ends of one socket: writes a request, turns what comes back into a `Call`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[Call] | None = None
        self._reused = False
        self._sent_s = 0.0
        self._arrived_s = 0.0
        self._is_stream = False
        self._is_framed = False
        self._reader: AnswerReader | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    async def exchange(self, request: bytes, timeout_s: float, *, reused: bool) -> Call:
        loop = asyncio.get_running_loop()
        self._answered = loop.create_future()
        self._reused = reused
        self._reader = None
        deadline = loop.call_later(timeout_s, self._fail, ErrorKind.TIMEOUT, f"no end within {timeout_s} s")
        self._sent_s = self._arrived_s = perf_counter()
        if self._transport is not None:
            self._transport.write(request)
        try:
            return await self._answered
        except asyncio.CancelledError:
            self.close()  # the rest of the answer is not for the next call
            raise
        finally:
            deadline.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, received: bytes) -> None:
        self._arrived_s = perf_counter()
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserError as error:
            self._fail(ErrorKind.PROTOCOL, f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._arrived_s = perf_counter()
        if self._reader is not None and not self._is_framed:
            self._finish(self._reader)  # without a length the end of the connection ends the body
        else:
            self._fail(ErrorKind.BROKEN, str(error) if error else "the server closed the connection")

    # httptools

    def on_message_begin(self) -> None:
        self._is_stream = False
        self._is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._is_stream = value.lower().startswith(b"text/event-stream")
            case b"content-length" | b"transfer-encoding":
                self._is_framed = True

    def on_headers_complete(self) -> None:
        if self._answered is None or self._answered.done():
            self.close()  # bytes that nobody asked for
            return
        self._reader = AnswerReader(self._parser.get_status_code(), is_stream=self._is_stream)

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(body, self._arrived_s)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._reader is not None:
            self._finish(self._reader)

    # The end of a call

    def _finish(self, reader: AnswerReader) -> None:
        reader.finish()
        self._answer(reader, reader.error)

    def _fail(self, kind: ErrorKind, message: str) -> None:
        self.close()
        self._answer(self._reader, CallError(kind, message))

    def _answer(self, reader: AnswerReader | None, error: CallError | None) -> None:
        self._reader = None
        if self._answered is None or self._answered.done():
            return
        done_s = (perf_counter() if error else self._arrived_s) - self._sent_s
        if reader is None:
            self._answered.set_result(Call(0, done_s, reused_connection=self._reused, error=error))
            return
        first_s = reader.first_content_s
        ended_s = self._arrived_s if first_s is None else reader.last_content_s
        self._answered.set_result(
            Call(
                status=reader.status,
                done_s=done_s,
                e2e_s=ended_s - self._sent_s if error is None else None,
                ttft_s=None if first_s is None else first_s - self._sent_s,
                itl_s=tuple(reader.gaps_s),
                output_tokens=reader.output_tokens,
                reused_connection=self._reused,
                error=error,
            )
        )
