"""The commands that `RedisScheduler` sends, kept instead of sent: so that they can be sent in one burst."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from cluster.clock import SystemClock
from cluster.scheduler.redis_scheduler import RedisScheduler

Command = tuple[Any, ...]
"""The words of one EVALSHA."""


class CommandRecorder:
    """`scheduler` is a real one in front of a client that only takes notes. It keeps what a scheduler keeps
    between calls (which adapters a replica held at its last heartbeat), so use one for one fleet."""

    def __init__(self) -> None:
        self.scheduler = RedisScheduler(cast("Any", self), SystemClock())
        self._reply: Any = None
        self._sent: list[Command] = []

    async def record(self, act: Callable[[RedisScheduler], Awaitable[Any]], reply: Any) -> Command:
        """The command of one call. `reply` is what the scheduler is told that the server said: a short one
        that its script may give."""
        self._reply, self._sent = reply, []
        await act(self.scheduler)
        (command,) = self._sent
        return command

    # What `RedisScheduler` uses of its client.

    async def evalsha(self, *words: Any) -> Any:
        self._sent.append(("EVALSHA", *words))
        return self._reply

    async def hget(self, _name: str, _field: str) -> None:
        """No replica reported anything before."""
