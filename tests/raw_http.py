"""Both ends of an HTTP connection in bytes: a transport without a socket, so that every split and order of
packets can be set, and a reader of answers by a parser that is not the gateway's (h11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import h11

from deployments.gateway.http.message import Reply, Request

TURNS = 200
"""Of the event loop without a byte written, after which a server is said to wait for its client."""


@dataclass(frozen=True)
class Answer:
    """`headers` with lower-case names. `complete`: its end came, by its framing or the connection's."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


def answers_in(data: bytes, methods: Sequence[str] = (), *, closed: bool = True) -> list[Answer]:
    """All answers that a server wrote on one connection, the 1xx ones too. `methods` are those of the
    requests, GET after the last. Raises h11.RemoteProtocolError where the bytes are not HTTP/1.1."""
    found: list[Answer] = []
    finals = 0
    while data:
        method = methods[finals] if finals < len(methods) else "GET"
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        informed, final, data = _read(client, closed=closed)
        found += informed
        if final is not None:
            found.append(final)
            finals += 1
    return found


def _read(client: h11.Connection, *, closed: bool) -> tuple[list[Answer], Answer | None, bytes]:
    informed: list[Answer] = []
    head: h11.Response | None = None
    body = b""
    at_end = False
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError:
            if not at_end or not (head or informed):
                raise
            # cut off by the end of the connection
            return informed, None if head is None else _answer(head, body, complete=False), b""
        if isinstance(event, h11.InformationalResponse):
            informed.append(_answer(event, b"", complete=True))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return informed, _answer(head, body, complete=True), client.trailing_data[0]
        elif event is h11.NEED_DATA and closed and not at_end:
            at_end = True
            client.receive_data(b"")
        else:
            return informed, None if head is None else _answer(head, body, complete=False), b""


def _answer(event: h11.Response | h11.InformationalResponse, body: bytes, *, complete: bool) -> Answer:
    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
    return Answer(event.status_code, headers, body, complete)


class MemoryTransport(asyncio.Transport):
    """Towards a server's protocol; the test is the client."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 80)})
        self._protocol = protocol
        self.written = bytearray()
        self.reading_paused = False
        self.closing = False
        self.eof_written = False
        self.aborted = False
        self.lost = False
        protocol.connection_made(self)

    async def send(self, *packets: bytes) -> None:
        """As the kernel would: nothing is delivered to a server that does not read, or has closed."""
        for packet in packets:
            await self.until(lambda: not self.reading_paused or self.closing)
            if self.closing or self.reading_paused:
                return
            self._protocol.data_received(packet)
            await asyncio.sleep(0)

    async def until(self, reached: Any) -> None:
        """Until it is so, or nothing is going on any more."""
        quiet, before = 0, len(self.written)
        while not reached() and quiet < TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self.written) == before else 0
            before = len(self.written)

    async def leave(self) -> bytes:
        """What the server wrote until it had no more to say; then the client goes."""
        await self.until(lambda: self.lost)
        written = bytes(self.written)
        self._lose()
        await asyncio.sleep(0)
        return written

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof_written, "written after the end"
        if not self.closing:
            self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def is_reading(self) -> bool:
        return not self.reading_paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self._protocol.connection_lost(None)


class Echo:
    """A handler that answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    async def __call__(self, request: Request, reply: Reply) -> None:
        self.seen.append(request)
        reply.respond(200, {"content-type": "text/plain"}, echo_of(request))


def echo_of(request: Request) -> bytes:
    return b"%b %b?%b %b" % (request.method.encode(), request.path.encode(), request.query, request.body)


def splits(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    return ((data[:at], data[at:]) for at in range(1, len(data)))


def pair_splits(data: bytes) -> Iterable[tuple[bytes, bytes, bytes]]:
    return (
        (data[:first], data[first:second], data[second:])
        for first in range(1, len(data))
        for second in range(first + 1, len(data))
    )
