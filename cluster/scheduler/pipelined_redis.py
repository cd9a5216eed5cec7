"""Scripts on Redis over one connection: everything that is asked in one turn of the event loop leaves in one
write. redis-py gives each command a connection of its own, and costs three times the CPU per call
(GATEWAY.md); it stays for all that is not asked on every call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import AuthenticationError, NoScriptError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import ConfigError

GRACE_S = 0.02
"""When the time of a command is over, the event loop gets one more turn to read what has come already: it may
have been the loop itself that was late."""


class PipelinedRedis:
    """Connects on first use. A command raises what redis-py would raise: ConnectionError, TimeoutError,
    ResponseError, NoScriptError. A lost connection is mended once per command, as every script is safe to
    repeat; a timeout is not tried again. A caller that is cancelled leaves the connection as it is."""

    def __init__(self, url: str, *, connect_timeout_s: float, operation_timeout_s: float) -> None:
        """`url` as in `cluster.scheduler.redis_connection.normal_url`. Raises ConfigError."""
        try:
            self._options: Mapping[str, Any] = parse_url(url)
        except ValueError as error:
            raise ConfigError("the Redis URL must start with redis://, rediss:// or unix://") from error
        self._connect_timeout_s = connect_timeout_s
        self._operation_timeout_s = operation_timeout_s
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._is_closed = False

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: str | int | bytes) -> Any:
        return _value(await self._ask(_packed("EVALSHA", sha, numkeys, *keys_and_args), 1))

    async def eval(self, script: str, numkeys: int, *keys_and_args: str | int | bytes) -> Any:
        return _value(await self._ask(_packed("EVAL", script, numkeys, *keys_and_args), 1))

    async def evalsha_each(
        self, sha: str, calls: Sequence[tuple[Sequence[str], Sequence[str | int | bytes]]]
    ) -> list[Any]:
        """One script for several pairs of keys and arguments. Errors of the server are values."""
        if not calls:
            return []  # what has no reply must not wait for one
        packed = [_packed("EVALSHA", sha, len(keys), *keys, *arguments) for keys, arguments in calls]
        replies: list[Any] = await self._ask(b"".join(packed), len(packed))
        return replies

    async def aclose(self) -> None:
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.lose(RedisConnectionError("the client was closed"))

    async def _ask(self, packed: bytes, commands: int) -> list[Any]:
        connection = self._connection
        if connection is not None and connection.is_open:
            try:
                return await connection.ask(packed, commands)
            except RedisConnectionError:  # it may have died unnoticed
                pass
        return await (await self._connected()).ask(packed, commands)

    async def _connected(self) -> _Connection:
        """Connecting is shared by all who wait for it, and goes on when one of them leaves."""
        if self._is_closed:
            raise RedisConnectionError("the client was closed")
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(_retrieve)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled():
                raise RedisConnectionError("the client was closed") from None
            raise

    async def _connect(self) -> _Connection:
        options = self._options
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if "path" in options:
                    _, connection = await loop.create_unix_connection(self._protocol, options["path"])
                else:
                    _, connection = await loop.create_connection(
                        self._protocol,
                        options.get("host", "localhost"),
                        int(options.get("port", 6379)),
                        ssl=_tls(options),
                    )
        except TimeoutError as error:
            raise RedisTimeoutError("no connection in time") from error
        except OSError as error:
            raise RedisConnectionError(str(error)) from error
        await self._greet(connection)
        self._connection = connection
        return connection

    async def _greet(self, connection: _Connection) -> None:
        greetings: list[tuple[str | int | bytes, ...]] = []
        if self._options.get("password"):
            user = self._options.get("username")
            greetings.append(("AUTH", *([user] if user else []), self._options["password"]))
        if self._options.get("db"):
            greetings.append(("SELECT", int(self._options["db"])))
        for greeting in greetings:
            (reply,) = await connection.ask(_packed(*greeting), 1)
            if isinstance(reply, Exception):
                connection.lose(RedisConnectionError("refused"))
                raise AuthenticationError(str(reply)) from reply

    def _protocol(self) -> _Connection:
        return _Connection(self._operation_timeout_s)


@dataclass(slots=True)
class _Asked:
    at_s: float
    commands: int
    future: asyncio.Future[list[Any]]
    replies: list[Any] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """Replies come in the order of the commands."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace", replyError=_reply_error)
        self._transport: asyncio.Transport | None = None
        self._asked: deque[_Asked] = deque()
        self._outgoing: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self.is_open = True

    def ask(self, packed: bytes, commands: int) -> asyncio.Future[list[Any]]:
        """Their replies; errors of the server are values."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if not self.is_open:
            future.set_exception(RedisConnectionError("the connection is lost"))
            return future
        self._asked.append(_Asked(self._loop.time(), commands, future))
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        return future

    def lose(self, error: Exception) -> None:
        """The end of this connection, and of all that were asked on it."""
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        asked, self._asked = self._asked, deque()
        for each in asked:
            if not each.future.done():
                each.future.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if not self._asked:
                    self.lose(RedisConnectionError("a reply that nobody asked for"))
                    return
                first = self._asked[0]
                first.replies.append(reply)
                if len(first.replies) == first.commands:
                    self._asked.popleft()
                    if not first.future.done():
                        first.future.set_result(first.replies)
        except hiredis.ProtocolError as error:
            self.lose(RedisConnectionError(f"not Redis: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self.is_open:
            self.lose(RedisConnectionError(str(error) if error else "the server closed the connection"))

    # Parts

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self.is_open and self._transport is not None:
            self._transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    def _look(self, *, again: bool = False) -> None:
        """One timer for all commands: the oldest is the first to run out of time."""
        self._watch = None
        if not self._asked:
            return
        left_s = self._asked[0].at_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
        elif not again:
            self._watch = self._loop.call_later(GRACE_S, lambda: self._look(again=True))
        else:
            self.lose(RedisTimeoutError("no reply in time"))


def _packed(*command: str | int | bytes) -> bytes:
    return hiredis.pack_command(command)  # type: ignore[arg-type, no-any-return]  # its stub knows one element


def _value(replies: list[Any]) -> Any:
    (reply,) = replies
    if isinstance(reply, Exception):
        raise reply
    return reply


def _reply_error(message: str) -> Exception:
    kind, _, rest = message.partition(" ")
    return NoScriptError(rest) if kind == "NOSCRIPT" else ResponseError(message)


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext | None:
    """As redis-py would make it of the same URL."""
    if options.get("connection_class") is not SSLConnection:
        return None
    arguments = {name: value for name, value in options.items() if name != "connection_class"}
    connection = SSLConnection(**arguments)
    return connection.ssl_context.get()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """So that nothing is logged when all who waited have left."""
    if not task.cancelled():
        task.exception()
