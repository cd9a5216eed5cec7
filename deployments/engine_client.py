"""HTTP to engine replicas: keep-alive connections per replica, one call at a time on each.

The answer's bytes are handed on as they come, without a task switch per piece (`EngineAnswer.relay`).
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable

import httptools

from cluster.errors import EngineFailed

IDLE_CONNECTION_S = 60.0
"""Below the engines' own keep-alive of 75 s, so that a call meets no connection that was just closed."""

SILENT_PEER_S = 3
"""As long as the directory keeps a replica without heartbeat. A host that lost its power or its network
closes nothing: without this a call on an open connection would wait until its own time limit."""

ADAPTER_HEADER = "x-sprat-adapter"
"""Names the adapter that a call runs with: the replica loads it where it is not there."""

MAX_ANSWER_BYTES = 64 * 2**20
HEADS_KEPT = 4096


class EngineAnswer:
    """Status and body of an engine's answer. Reading raises EngineFailed when the replica is lost."""

    __slots__ = ("_complete", "_connection", "_failure", "_feed", "_parts", "_size", "_waiter", "status")

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._complete = False
        self._failure: Exception | None = None
        self._feed: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0

    async def read(self) -> bytes:
        """The whole body."""
        while not self._complete:
            await self._news()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def relay(self, feed: Callable[[bytes], None]) -> None:
        """Gives every piece of the body to `feed` at the moment in which it comes; what `feed` raises ends
        the answer and is raised here."""
        self._feed = feed
        if self._parts:
            parts, self._parts = self._parts, []
            feed(b"".join(parts))
        while not self._complete:
            await self._news()

    def close(self) -> None:
        """Always to be called. An answer that is not complete costs its connection, which makes the engine
        abort the generation."""
        self._feed = None
        self._connection.release(self)

    # `Source`: held back while the client does not read.

    def pause(self) -> None:
        self._connection.pause(self)

    def resume(self) -> None:
        self._connection.resume(self)

    # For the connection.

    @property
    def has_begun(self) -> bool:
        return self.status != 0

    @property
    def is_complete(self) -> bool:
        return self._complete

    async def begun(self) -> None:
        while not self.status:
            await self._news()

    def take(self, data: bytes) -> None:
        """Raises what the reader raises."""
        if self._feed is not None:
            self._feed(data)
            return
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise EngineFailed("The engine sent an answer that is too large.")
        self._parts.append(data)

    def complete(self) -> None:
        self._complete = True
        self.tell()

    def fail(self, failure: Exception) -> None:
        if not self._complete and self._failure is None:
            self._failure = failure
            self.tell()

    def tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        if self._failure is None:
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure


class _Connection(asyncio.Protocol):
    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # from connection_made on
        self._answer: EngineAnswer | None = None
        self._received: list[bytes] = []
        self._keep_alive = True
        self._is_paused = False
        self._is_whole = False
        self._is_spoiled = False
        self.loop = asyncio.get_running_loop()
        self.is_open = True
        self.idle_since_s = 0.0

    def send(self, request: bytes) -> EngineAnswer:
        self._answer = answer = EngineAnswer(self)
        self._transport.write(request)
        return answer

    def release(self, answer: EngineAnswer) -> None:
        if self._answer is not answer:
            return  # it was given back already
        self._answer = None
        if not answer.is_complete or not self._keep_alive:
            self.abort()
        elif self.is_open:
            self.resume(None)
            self.idle_since_s = self.loop.time()
            self._pool.idle.append(self)

    def pause(self, answer: EngineAnswer) -> None:
        if self._answer is answer and not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self, answer: EngineAnswer | None) -> None:
        if self._is_paused and self.is_open and (answer is None or self._answer is answer):
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        self.is_open = False
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
            if self._received:
                received, self._received = self._received, []
                answer.take(received[0] if len(received) == 1 else b"".join(received))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lose(answer, EngineFailed("The engine sent an answer that is not HTTP."))
        except Exception as failure:
            self._lose(answer, failure)
        else:
            if self._is_whole:
                self._is_whole = False
                answer.complete()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (protocol)
        self.is_open = False
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        if self._answer is not None:
            self._answer.fail(EngineFailed("The engine stopped answering."))
        # It holds this object: without this only the garbage collector would end both.
        self._parser = None  # type: ignore[assignment]

    def _lose(self, answer: EngineAnswer, failure: Exception) -> None:
        self._received.clear()
        answer.fail(failure)
        self.abort()

    # httptools

    def on_message_begin(self) -> None:
        if self._answer is not None and (self._is_whole or self._answer.is_complete):
            # A second answer to one request: not for this call, and not for the next.
            self._is_spoiled = True
            self._keep_alive = False

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._answer is None or self._is_spoiled or status < 200:
            return
        self._answer.status = status
        self._answer.tell()

    def on_body(self, body: bytes) -> None:
        if not self._is_spoiled:
            self._received.append(body)

    def on_message_complete(self) -> None:
        if self._answer is None or self._is_spoiled or not self._answer.has_begun:
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._is_whole = True


class _Pool:
    """Idle connections to one replica, the freshest last."""

    def __init__(self) -> None:
        self.idle: list[_Connection] = []

    def take(self, now_s: float) -> _Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.is_open and now_s - connection.idle_since_s < IDLE_CONNECTION_S:
                return connection
            connection.abort()
        return None


class EngineClient:
    """Connections to all replicas."""

    def __init__(self, gateway_token: str, connect_timeout_s: float) -> None:
        self._token = gateway_token
        self._connect_timeout_s = connect_timeout_s
        self._pools: defaultdict[str, _Pool] = defaultdict(_Pool)
        self._heads: dict[tuple[str, str, str | None], bytes] = {}
        self._loop = asyncio.get_running_loop()

    async def post(self, address: str, path: str, body: bytes, adapter: str | None = None) -> EngineAnswer:
        """When status and headers are there; to be closed. Raises EngineFailed: not reached, or lost before
        it answered."""
        request = b"%b%d\r\n\r\n%b" % (self._head(address, path, adapter), len(body), body)
        pool = self._pools[address]
        connection = pool.take(self._loop.time())
        if connection is not None:
            try:
                return await _begun(connection.send(request))
            except EngineFailed:
                # Closed by the engine while it was idle: no sign that the replica is lost. Once more, on a
                # connection of which we know that it is open.
                pass
        return await _begun((await self._connect(address, pool)).send(request))

    async def close(self) -> None:
        for pool in self._pools.values():
            for connection in list(pool.idle):
                connection.abort()
        self._pools.clear()

    async def _connect(self, address: str, pool: _Pool) -> _Connection:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                transport, connection = await self._loop.create_connection(
                    lambda: _Connection(pool), host.strip("[]"), int(port)
                )
        except (OSError, TimeoutError, ValueError) as error:
            raise EngineFailed("The engine could not be reached.") from error
        _notice_silence(transport.get_extra_info("socket"))
        return connection

    def _head(self, address: str, path: str, adapter: str | None) -> bytes:
        head = self._heads.get((address, path, adapter))
        if head is None:
            if len(self._heads) >= HEADS_KEPT:
                self._heads.clear()
            named = "" if adapter is None else f"{ADAPTER_HEADER}: {adapter}\r\n"
            head = (
                f"POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {self._token}\r\n{named}"
                "content-type: application/json\r\ncontent-length: "
            ).encode("ascii")
            self._heads[address, path, adapter] = head
        return head


def _notice_silence(sock: socket.socket) -> None:
    """The kernel asks a peer that is silent whether it is there, and ends the connection when nothing comes
    back. The host of an engine that computes answers these probes for it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENT_PEER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_PEER_S * 1000)


async def _begun(answer: EngineAnswer) -> EngineAnswer:
    try:
        await answer.begun()
    except BaseException:
        answer.close()
        raise
    return answer
