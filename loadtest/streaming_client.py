"""One call to an OpenAI-compatible endpoint → its timings, with every error as a value.

Times are taken when bytes arrive from the socket, before anything is parsed, and bytes are read as they
come: a reader that fills blocks of 1 kB first reports a TTFT that is seconds late for small chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        return await self.call_until(request, 0.0, lambda _: None)

    async def call_until(self, request: bytes, deadline_s: float, on_call: Callable[[Call], None]) -> Call:
        """The same call again and again, at least once: until one begins too late (`perf_counter`), fails or
        ends the connection. `on_call` hears of each; the last is returned.

        Cheaper than a loop around `call`: the next request is written where the last answer was read.
        """
        connection = self._connection
        reused = connection is not None and connection.is_open
        if connection is None or not reused:
            started_s = perf_counter()
            try:
                connection = await self._connect()
            except (OSError, TimeoutError) as error:
                self._connection = None
                failure = CallError(ErrorKind.CONNECT, str(error) or type(error).__name__)
                call = Call(status=0, done_s=perf_counter() - started_s, error=failure)
                on_call(call)
                return call
            self._connection = connection
        return await connection.exchange(request, self._timeout_s, deadline_s, on_call, reused=reused)

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
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._last_call: asyncio.Future[Call] | None = None
        self._request = b""
        self._timeout_s = 0.0
        self._deadline_s = 0.0
        self._on_call: Callable[[Call], None] = lambda _: None
        self._timer: asyncio.TimerHandle | None = None
        self._reused = False
        self._waiting = False
        self._sent_s = 0.0
        self._arrived_s = 0.0
        self._is_stream = False
        self._is_framed = False
        self._reader: AnswerReader | None = None
        self._complete = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    async def exchange(
        self,
        request: bytes,
        timeout_s: float,
        deadline_s: float,
        on_call: Callable[[Call], None],
        *,
        reused: bool,
    ) -> Call:
        self._request, self._timeout_s = request, timeout_s
        self._deadline_s, self._on_call = deadline_s, on_call
        self._reused = reused
        self._last_call = self._loop.create_future()
        self._send()
        try:
            return await self._last_call
        except asyncio.CancelledError:
            self.close()  # the rest of the answer is not for the next call
            raise

    def _send(self) -> None:
        self._reader = None
        self._waiting = True
        self._sent_s = self._arrived_s = perf_counter()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look_at_the_clock)
        if self._transport is not None:
            self._transport.write(self._request)

    def _look_at_the_clock(self) -> None:
        """One timer for many calls: setting one for each would cost more than most of what a call does."""
        self._timer = None
        if not self._waiting:
            return
        left_s = self._sent_s + self._timeout_s - perf_counter()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_at_the_clock)
        else:
            self._fail(ErrorKind.TIMEOUT, f"no end within {self._timeout_s} s")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, received: bytes) -> None:
        self._arrived_s = perf_counter()
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserError as error:
            self._fail(ErrorKind.PROTOCOL, f"not HTTP: {error}")
            return
        # Not before all that came is read: more than the answer is not the beginning of the next one.
        if self._complete and self._reader is not None:
            self._finish(self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._arrived_s = perf_counter()
        if self._reader is not None and not self._is_framed:
            self._finish(self._reader)  # without a length the end of the connection ends the body
        else:
            self._fail(ErrorKind.BROKEN, str(error) if error else "the server closed the connection")

    # httptools

    def on_message_begin(self) -> None:
        self._complete = False
        self._is_stream = False
        self._is_framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-type":
                self._is_stream = value.lower().startswith(b"text/event-stream")
            case b"content-length" | b"transfer-encoding":
                self._is_framed = True

    def on_headers_complete(self) -> None:
        if not self._waiting or self._reader is not None:
            self._fail(ErrorKind.PROTOCOL, "an answer that nobody asked for")
            return
        self._reader = AnswerReader(self._parser.get_status_code(), is_stream=self._is_stream)

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.feed(body, self._arrived_s)

    def on_message_complete(self) -> None:
        self._complete = True
        if not self._parser.should_keep_alive():
            self.close()

    # The end of a call

    def _finish(self, reader: AnswerReader) -> None:
        reader.finish()
        self._answer(reader, reader.error)

    def _fail(self, kind: ErrorKind, message: str) -> None:
        self.close()
        self._answer(self._reader, CallError(kind, message))

    def _answer(self, reader: AnswerReader | None, error: CallError | None) -> None:
        self._reader = None
        if not self._waiting or self._last_call is None or self._last_call.done():
            return
        self._waiting = False
        call = self._call(reader, error)
        self._on_call(call)
        if error is None and self._transport is not None and perf_counter() < self._deadline_s:
            self._reused = True
            self._send()
        else:
            self._last_call.set_result(call)

    def _call(self, reader: AnswerReader | None, error: CallError | None) -> Call:
        done_s = (perf_counter() if error else self._arrived_s) - self._sent_s
        if reader is None:
            return Call(0, done_s, reused_connection=self._reused, error=error)
        first_s = reader.first_content_s
        ended_s = self._arrived_s if first_s is None else reader.last_content_s
        return Call(
            status=reader.status,
            done_s=done_s,
            e2e_s=ended_s - self._sent_s if error is None else None,
            ttft_s=None if first_s is None else first_s - self._sent_s,
            itl_s=tuple(reader.gaps_s),
            output_tokens=reader.output_tokens,
            reused_connection=self._reused,
            error=error,
        )
