"""The gateway's clockwork: a sign of life every second, leases renewed, waiters polled, the dead reaped,
and what a store has lost brought back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cluster.clock import SystemClock
from cluster.errors import SchedulerUnavailable, StoreUnavailable
from cluster.ledger import Ledger, LedgerEntry
from cluster.scheduler.guarded_scheduler import GuardedScheduler
from cluster.scheduler.redis_scheduler import GrantNotice
from cluster.scheduler.snapshot import FleetSnapshot
from cluster.types import LOCAL_FENCE, TICKET_TTL_MS, AdmitRequest, Grant, HeldLease, Lost, SettleRequest
from deployments.gateway.admission import Admission
from deployments.gateway.budget_rebuild import BudgetRebuild
from deployments.gateway.settling import Settling
from deployments.gateway.tasks import end_task
from deployments.gateway.waiting_room import WaitingRoom

logger = logging.getLogger("ray.serve")

LEASE_TTL_MS = 15_000
TICK_S = 1.0
TICKS_PER_RENEWAL = 5
POLL_S = 0.2

REAP_AFTER_S = 3.0
"""After an outage nobody is reaped for this long: places ran out that their gateways could not keep, and what
has ended is still in journals. A hold that is given back too early is money spent twice."""

KNOWN_ELSEWHERE = -1
"""Fence of a call that this gateway decided alone, while the store turned out to know it already."""


@dataclass(slots=True)
class _Running:
    request: AdmitRequest
    grant: Grant
    dispatched: bool = False


class LeaseKeeper:
    """One per gateway."""

    def __init__(
        self,
        gateway: str,
        scheduler: GuardedScheduler,
        *,
        admission: Admission,
        room: WaitingRoom,
        rebuild: BudgetRebuild,
        settling: Settling,
        ledger: Ledger,
        pools: tuple[str, ...],
        charge_lost: bool,
        listen_for_grants: Callable[[str, Callable[[GrantNotice], None]], Awaitable[None]],
    ) -> None:
        self._gateway = gateway
        self._scheduler = scheduler
        self._admission = admission
        self._room = room
        self._rebuild = rebuild
        self._settling = settling
        self._ledger = ledger
        self._pools = pools
        self._charge_lost = charge_lost
        self._listen_for_grants = listen_for_grants
        self._running: dict[str, _Running] = {}
        self._ticks = 0
        self._server = ""
        self._back_s = -REAP_AFTER_S
        self._tasks = tuple(
            asyncio.create_task(loop) for loop in (self._tick_loop(), self._poll_loop(), self._listen())
        )

    def hold(self, request: AdmitRequest, grant: Grant) -> None:
        self._running[request.request_id] = _Running(request, grant)

    def dispatched(self, request_id: str) -> None:
        """An engine took the call: if this gateway dies now, the model may have run."""
        running = self._running.get(request_id)
        if running is not None:
            running.dispatched = True

    def release(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._admission.ended(request_id)

    @property
    def running(self) -> int:
        """Calls that hold a slot or wait for one."""
        return len(self._running) + len(self._room)

    def alive(self) -> bool:
        return not any(task.done() for task in self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            await end_task(task)

    # Every second.

    async def _tick_loop(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._tick()
            except SchedulerUnavailable:
                # The breaker says so, once. Who waits for the store waits in vain.
                if self._scheduler.breaker.is_open:
                    self._room.dissolve()
            except Exception:  # a loop that ends silently would lose every lease of this gateway
                logger.exception("leases could not be renewed this time")
            await asyncio.sleep(max(0.1, TICK_S - (time.monotonic() - started)))

    async def _tick(self) -> None:
        was_away = self._scheduler.breaker.is_open
        due = was_away or self._ticks % TICKS_PER_RENEWAL == 0
        self._ticks += 1
        running = [each for each in self._running.values() if each.grant.fence > LOCAL_FENCE] if due else []
        renewal = await self._scheduler.renew(
            self._gateway, [HeldLease(each.grant, each.dispatched) for each in running], LEASE_TTL_MS
        )
        if self._rebuild.saw(renewal.epoch):
            await self._bring_back()
        else:
            for each, kept in zip(running, renewal.kept, strict=True):
                self._lease_was_lost(each, kept=kept)
        if was_away or renewal.server != self._server:
            # It may have come back, or another have taken over, without its last seconds.
            self._rebuild.doubt_all()
            self._admission.store_is_back()
            if self._server:
                self._back_s = time.monotonic()
                await self._settling.flush()
        self._server = renewal.server
        if not self._rebuild.is_open:
            await self._rebuild.advance()
        await self._register_own_decisions()
        with suppress(StoreUnavailable):
            await self._rebuild.raise_doubtful()
        loads = {pool: await self._scheduler.pool_load(pool) for pool in self._pools}
        self._admission.snapshot = FleetSnapshot.of(loads, renewal.gateways)
        if time.monotonic() - self._back_s >= REAP_AFTER_S:
            await self._reap()

    async def _reap(self) -> None:
        left_behind = await self._scheduler.reap(self._pools, charge_lost=self._charge_lost)
        if left_behind:
            charged = sum(lost.charge_micro_usd for lost in left_behind)
            logger.warning("%d calls were left behind; charged %d micro-USD", len(left_behind), charged)
        await self._book([lost for lost in left_behind if lost.charge_micro_usd])

    def _lease_was_lost(self, running: _Running, *, kept: bool) -> None:
        # A retry may hold a newer grant of the same request by now.
        current = self._running.get(running.request.request_id)
        if not kept and current is running and current.grant is running.grant:
            logger.warning(
                "lease of %s was lost; the call goes on and is settled once", running.request.request_id
            )
            running.grant = replace(running.grant, fence=KNOWN_ELSEWHERE)

    async def _bring_back(self) -> None:
        """Another epoch: the store is new, or it lost its data. First what has ended, then what still
        runs."""
        await self._rebuild.advance()
        await self._settling.flush()
        for running in list(self._running.values()):
            await self._register(running)

    async def _register_own_decisions(self) -> None:
        """Calls that this gateway let in while the store was away take their slots in its books."""
        for running in list(self._running.values()):
            if running.grant.fence == LOCAL_FENCE:
                await self._register(running)

    async def _register(self, running: _Running) -> None:
        grant = running.grant
        registered = await self._scheduler.reregister(running.request, HeldLease(grant, running.dispatched))
        if running.request.request_id not in self._running:
            # It ended meanwhile. Where its settle came first, nobody else would end what was just brought
            # back; its cost comes with the ledger's sum. Where it did not, this changes nothing.
            self._settling.cancel(
                SettleRequest(
                    request_id=running.request.request_id,
                    pools=(grant.candidate.pool,),
                    budgets=running.request.budget_names,
                    cancelled=True,
                )
            )
        elif running.grant is grant:
            running.grant = registered or replace(grant, fence=KNOWN_ELSEWHERE)

    async def _book(self, charged: Sequence[Lost]) -> None:
        """Into the ledger. A call that is in there already had ended, and the store lost that: its charge
        is taken back, and what it cost comes with the ledger's sum."""
        if not charged:
            return
        ended = await asyncio.to_thread(self._ledger.find, [lost.request_id for lost in charged])
        for lost in charged:
            if lost.request_id not in ended:
                self._settling.lost(entry_of_lost(lost))
                continue
            await self._scheduler.settle(
                SettleRequest(lost.request_id, self._pools, ended[lost.request_id].tier, budgets=lost.budgets)
            )
            self._rebuild.doubt(lost.budgets)

    # Waiters.

    async def _poll_loop(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            waiting = self._room.waiting
            if not waiting:
                continue
            try:
                answers = await self._scheduler.poll(waiting, TICKET_TTL_MS)
            except SchedulerUnavailable:
                if self._scheduler.breaker.is_open:
                    self._room.dissolve()
                continue
            except Exception:
                logger.exception("waiters could not be polled this time")
                continue
            for each, answer in zip(waiting, answers, strict=True):
                self._room.tell(each.request_id, answer)

    async def _listen(self) -> None:
        await self._listen_for_grants(self._gateway, self._room.granted)


def entry_of_lost(lost: Lost) -> LedgerEntry:
    """What is known of a call whose gateway died: its admission (`cluster.scheduler.terms`), and its
    charge."""
    note = json.loads(lost.note)
    return LedgerEntry(
        request_id=lost.request_id,
        kind="expired",
        tenant=note["tenant"],
        key_id=note["key_id"],
        tier=note["tier"],
        pool=note["pool"],
        model=note["model"],
        prompt_tokens=0,
        output_tokens=0,
        estimated=True,
        cost_micro_usd=lost.charge_micro_usd,
        saved_micro_usd=0,
        engine_ms=0,
        admitted_at_ms=note["admitted_ms"],
        settled_at_ms=SystemClock().now_ms(),
    )
