"""The dumb baselines: first come, first served, over all slots of the fleet; unbounded, blind to class and
tenant.

As people have it, `fifo` is blind to deadlines too. `fifo+deadlines` gives up what it cannot start in time:
the most that can be had without telling calls apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deployments.bench.arrivals import Arrival, Fleet
from deployments.bench.overload import Outcome


class FifoQueue:
    def __init__(self, slots: int, *, heeds_deadlines: bool = False) -> None:
        self._slots = asyncio.Semaphore(slots)  # wakes its waiters in the order of their arrival
        self._heeds_deadlines = heeds_deadlines

    async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
        async with self._slots:
            started_s = time.monotonic()
            if self._heeds_deadlines and started_s > start_by_s:
                return Outcome(refused=True, reason="deadline")
            await asyncio.sleep(arrival.service_s)
            return Outcome(started_s, time.monotonic())

    async def details(self) -> dict[str, Any]:
        return {}


@asynccontextmanager
async def fifo_queue(fleet: Fleet, *, heeds_deadlines: bool = False) -> AsyncIterator[FifoQueue]:
    yield FifoQueue(fleet.slots, heeds_deadlines=heeds_deadlines)
