"""The dumb baseline: first come, first served, over all slots of the fleet.

Unbounded, and blind to class, tenant and deadline.
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
    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)  # wakes its waiters in the order of their arrival

    async def run(self, arrival: Arrival, start_by_s: float) -> Outcome:
        async with self._slots:
            started_s = time.monotonic()
            await asyncio.sleep(arrival.service_s)
            return Outcome(started_s, time.monotonic())

    async def details(self) -> dict[str, Any]:
        return {}


@asynccontextmanager
async def fifo_queue(fleet: Fleet) -> AsyncIterator[FifoQueue]:
    yield FifoQueue(fleet.slots)
