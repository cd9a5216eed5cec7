"""Sprat's scheduler under the overload trace: its real scripts on a Valkey of its own, no HTTP, no engines.

What a gateway does for a call is done here with its own parts: admit, wait for the store's message or the
next poll, start, settle; beside that heartbeats, and once a second a sign of life and a reap. A call says how
long it can wait, and is refused at once where the predicted wait is longer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from cluster.clock import SystemClock
from cluster.config.schema import SchedulerConfig
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import HEARTBEAT_PERIOD_S
from cluster.types import (
    TICKET_TTL_MS,
    AdmitRequest,
    Candidate,
    Grant,
    Placement,
    Price,
    QueueTerms,
    Refusal,
    ReplicaPhase,
    ReplicaState,
    SettleRequest,
    Waiting,
)
from deployments.bench.arrivals import MEAN_SERVICE_S, Arrival, Fleet
from deployments.bench.overload import Outcome
from deployments.bench.throw_away_valkey import throw_away_valkey
from deployments.gateway.leases import LEASE_TTL_MS, POLL_S, TICK_S
from deployments.gateway.waiting_room import WaitingRoom

GATEWAY = "bench"
POOL = "bench"
FREE = Price(prompt_micro_usd_per_mtok=0, output_micro_usd_per_mtok=0)
CANDIDATE = Candidate("bench", POOL, "bench", None, FREE, max_tokens=0, estimated_cost_micro_usd=0)
DEFAULTS = SchedulerConfig()


class SpratQueue:
    """One gateway's view, with the queue of the default configuration."""

    def __init__(self, scheduler: RedisScheduler, fleet: Fleet) -> None:
        self._scheduler = scheduler
        self._placement = Placement(service_us=round(MEAN_SERVICE_S * 1e6), slots=fleet.slots_per_replica)
        self._replicas = tuple(
            ReplicaState(
                f"{POOL}-{number}",
                POOL,
                ReplicaPhase.READY,
                address=f"127.0.0.1:{9000 + number}",
                epoch=1,
                max_concurrency=fleet.slots_per_replica,
            )
            for number in range(fleet.replicas)
        )
        self._room = WaitingRoom()
        self._answers: Counter[str] = Counter()

    async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
        answer = await self._scheduler.admit(self._request(arrival, start_by_s))
        if isinstance(answer, Refusal):
            self._answers[answer.reason] += 1
            return Outcome(refused=True, reason=answer.reason)
        started = False
        try:
            grant = await self._granted(answer, start_by_s)
            started_s = time.monotonic()
            if grant is None or started_s > start_by_s:
                self._answers["deadline"] += 1
                return Outcome(refused=True, reason="deadline")
            started = True
            await asyncio.sleep(arrival.service_s)
            return Outcome(started_s, time.monotonic())
        finally:
            await self._scheduler.settle(SettleRequest(arrival.request_id, (POOL,), cancelled=not started))

    async def _granted(self, answer: Grant | Waiting, start_by_s: float) -> Grant | None:
        if isinstance(answer, Grant):
            self._answers["granted"] += 1
            return answer
        self._answers["waited"] += 1
        return await self._room.wait(answer, start_by_s - time.monotonic())

    def _request(self, arrival: Arrival, start_by_s: float) -> AdmitRequest:
        left_ms = max(1, int((start_by_s - time.monotonic()) * 1000))
        return AdmitRequest(
            request_id=arrival.request_id,
            step=0,
            candidates=(CANDIDATE,),
            tokens=arrival.tokens,
            lease_ttl_ms=LEASE_TTL_MS,
            gateway=GATEWAY,
            tenant=arrival.tenant,
            priority=arrival.priority,
            deadline_ms=left_ms,
            placements=(self._placement,),
            queue=QueueTerms(
                longest_queue=DEFAULTS.longest_queue,
                longest_wait_ms=left_ms,
                ageing_ms=int(DEFAULTS.ageing_s * 1000),
            ),
        )

    async def details(self) -> dict[str, Any]:
        """First answers by kind (`deadline`: of those that waited, not started because their time was
        over)."""
        return {
            "longest_queue": DEFAULTS.longest_queue,
            "answers": dict(self._answers),
        }

    # The clockwork of `deployments.gateway.leases`, less what no run here needs: all work ends long before
    # its lease does, and the store stays.

    async def heartbeat(self) -> None:
        for replica in self._replicas:
            await self._scheduler.heartbeat(replica)

    async def tick(self) -> None:
        await self._scheduler.renew(GATEWAY, (), LEASE_TTL_MS)
        await self._scheduler.reap((POOL,))

    async def poll(self) -> None:
        waiting = self._room.waiting
        for each, answer in zip(waiting, await self._scheduler.poll(waiting, TICKET_TTL_MS), strict=True):
            self._room.tell(each.request_id, answer)

    async def listen(self) -> None:
        await self._scheduler.listen_for_grants(GATEWAY, self._room.granted)


@asynccontextmanager
async def sprat_queue(fleet: Fleet) -> AsyncIterator[SpratQueue]:
    with throw_away_valkey() as socket_path:
        client = connect(str(socket_path), operation_timeout_s=10)  # a stall of this machine is no outage
        queue = SpratQueue(RedisScheduler(client, SystemClock()), fleet)
        await queue.heartbeat()
        loops = [
            asyncio.create_task(each)
            for each in (
                queue.listen(),
                _every(HEARTBEAT_PERIOD_S, queue.heartbeat),
                _every(TICK_S, queue.tick),
                _every(POLL_S, queue.poll),
            )
        ]
        try:
            yield queue
        finally:
            for loop in loops:
                loop.cancel()
            for loop in loops:
                with suppress(asyncio.CancelledError):
                    await loop
            await client.aclose()


async def _every(period_s: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await act()
