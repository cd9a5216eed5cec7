"""Admissions that are asked for in the same turn of the event loop leave together, at its end: they share a
script and its round trip. One alone goes the same way: the script for many is the cheaper one (DECISIONS)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cluster.errors import SchedulerUnavailable
from cluster.types import AdmitRequest, Grant

AT_ONCE = 32
"""Calls per script: nobody else is served meanwhile."""

_Asked = tuple[AdmitRequest, asyncio.Future[Grant | None]]


class Gathering:
    """One per connection. `together` admits calls of one pool; None: that one must be asked alone."""

    def __init__(self, together: Callable[[Sequence[AdmitRequest]], Awaitable[list[Grant | None]]]) -> None:
        self._together = together
        self._asked: list[_Asked] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def admit(self, request: AdmitRequest) -> Grant | None:
        """None: ask alone. Raises what `together` raises."""
        if not self._asked:
            self._loop.call_soon(self._end_turn)
        future: asyncio.Future[Grant | None] = self._loop.create_future()
        self._asked.append((request, future))
        return await future

    def _end_turn(self) -> None:
        asked, self._asked = self._asked, []
        by_pool: dict[str, list[_Asked]] = {}
        for each in asked:
            by_pool.setdefault(each[0].candidates[0].pool, []).append(each)
        for calls in by_pool.values():
            for start in range(0, len(calls), AT_ONCE):
                task = self._loop.create_task(self._ask(calls[start : start + AT_ONCE]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, calls: Sequence[_Asked]) -> None:
        calls = [each for each in calls if not each[1].done()]  # who has left is not admitted
        if not calls:
            return
        try:
            grants = await self._together([request for request, _ in calls])
        except SchedulerUnavailable as error:
            for _, future in calls:
                if not future.done():  # each its own: callers write on it
                    future.set_exception(_copy_of(error))
            return
        for (_, future), grant in zip(calls, grants, strict=True):
            if not future.done():
                future.set_result(grant)


def _copy_of(error: SchedulerUnavailable) -> SchedulerUnavailable:
    copy = SchedulerUnavailable(error.message, retry_after_s=error.retry_after_s)
    copy.__cause__ = error.__cause__
    return copy
