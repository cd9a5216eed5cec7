"""The commands that `RedisScheduler` sends, kept instead of sent: so that they can be sent in one burst."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from cluster.clock import SystemClock
from cluster.scheduler.redis_scheduler import RedisScheduler

Command = tuple[Any, ...]
"""The words of one EVALSHA."""


class _Kept(Exception):
    """Ends the call: nobody answers it."""


class CommandRecorder:
    """A real scheduler in front of a client that only takes notes."""

    def __init__(self) -> None:
        self._scheduler = RedisScheduler(cast("Any", self), SystemClock())
        self._kept: Command = ()

    async def record(self, act: Callable[[RedisScheduler], Awaitable[Any]]) -> Command:
        """The first script that this call runs."""
        try:
            await act(self._scheduler)
        except _Kept:
            return self._kept
        raise RuntimeError("this call runs no script")

    # What `RedisScheduler` uses of its client.

    async def evalsha(self, *words: Any) -> Any:
        self._kept = ("EVALSHA", *words)
        raise _Kept

    async def hget(self, _name: str, _field: str) -> None:
        """No replica reported anything before."""
