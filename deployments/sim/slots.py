"""Slots of one engine: first come, first served, as an engine's own waiting queue."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Slots:
    """`acquire` waits for a slot, `release` hands it to the longest waiter. A cancelled waiter costs
    nobody a slot, also when its turn came in the same loop turn as the cancellation."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiters)

    async def acquire(self) -> None:
        if self._running < self._limit:
            # No waiter can be passed by: `release` lowers the count only when nobody waits.
            self._running += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):  # `release` may have dropped it already
                    self._waiters.remove(waiter)
            else:
                self.release()
            raise

    def release(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)  # the slot changes hands, the count stays
                return
        self._running -= 1
