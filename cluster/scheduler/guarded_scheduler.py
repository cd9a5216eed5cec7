"""A scheduler behind a breaker: every operation reports how it went, and none waits for a store that is
away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cluster.errors import SchedulerUnavailable
from cluster.scheduler.breaker import Breaker
from cluster.scheduler.scheduler import REBUILD_GRACE_MS, Scheduler
from cluster.types import (
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Grant,
    HeldLease,
    Lost,
    PoolLoad,
    Refusal,
    Renewal,
    ReplicaState,
    Settlement,
    SettleRequest,
    Spend,
    Waiting,
)

T = TypeVar("T")


class GuardedScheduler:
    """`Scheduler`. While the breaker is open every call raises SchedulerUnavailable at once, except
    `renew`: the gateway's sign of life, once a second, is also the probe."""

    def __init__(self, scheduler: Scheduler, breaker: Breaker) -> None:
        self._scheduler = scheduler
        self.breaker = breaker

    async def admit(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        return await self._guard(lambda: self._scheduler.admit(request))

    async def poll(
        self, waiting: Sequence[Waiting], ticket_ttl_ms: int
    ) -> tuple[Grant | Waiting | None, ...]:
        return await self._guard(lambda: self._scheduler.poll(waiting, ticket_ttl_ms))

    async def renew(self, gateway: str, leases: Sequence[HeldLease], lease_ttl_ms: int) -> Renewal:
        return await self._report(lambda: self._scheduler.renew(gateway, leases, lease_ttl_ms))

    async def settle(self, request: SettleRequest) -> Settlement | None:
        return await self._guard(lambda: self._scheduler.settle(request))

    async def reap(self, pools: Sequence[str], *, charge_lost: bool = True) -> tuple[Lost, ...]:
        return await self._guard(lambda: self._scheduler.reap(pools, charge_lost=charge_lost))

    async def heartbeat(self, state: ReplicaState) -> None:
        await self._guard(lambda: self._scheduler.heartbeat(state))

    async def deregister(self, state: ReplicaState) -> None:
        await self._guard(lambda: self._scheduler.deregister(state))

    async def rebuild(self, spent: Sequence[tuple[BudgetLine, int]], grace_ms: int = REBUILD_GRACE_MS) -> str:
        return await self._guard(lambda: self._scheduler.rebuild(spent, grace_ms))

    async def reregister(self, request: AdmitRequest, lease: HeldLease) -> Grant | None:
        return await self._guard(lambda: self._scheduler.reregister(request, lease))

    async def budget_states(self, budgets: Sequence[tuple[str, str]]) -> tuple[BudgetState, ...]:
        return await self._guard(lambda: self._scheduler.budget_states(budgets))

    async def pool_load(self, pool: str) -> PoolLoad:
        return await self._guard(lambda: self._scheduler.pool_load(pool))

    async def spend_today(self) -> Spend:
        return await self._guard(self._scheduler.spend_today)

    async def ping(self) -> None:
        await self._guard(self._scheduler.ping)

    async def close(self) -> None:
        await self._scheduler.close()

    async def _guard(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.breaker.is_open:
            raise SchedulerUnavailable(
                "The scheduler's store does not answer; try again shortly.", retry_after_s=1.0
            )
        return await self._report(call)

    async def _report(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await call()
        except SchedulerUnavailable as error:
            self.breaker.failed(f"{type(error.__cause__).__name__}: {error.__cause__}")
            raise
        self.breaker.succeeded()
        return result
