"""A scheduler behind a breaker: every operation reports how it went, and none waits for a store that is
away."""

from __future__ import annotations

from collections.abc import Sequence

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


class GuardedScheduler:
    """`Scheduler`. While the breaker is open every call raises SchedulerUnavailable at once, except
    `renew`: the gateway's sign of life, once a second, is also the probe."""

    def __init__(self, scheduler: Scheduler, breaker: Breaker) -> None:
        self._scheduler = scheduler
        self.breaker = breaker

    async def admit(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        with self.breaker:
            return await self._scheduler.admit(request)

    async def poll(
        self, waiting: Sequence[Waiting], ticket_ttl_ms: int
    ) -> tuple[Grant | Waiting | None, ...]:
        with self.breaker:
            return await self._scheduler.poll(waiting, ticket_ttl_ms)

    async def renew(self, gateway: str, leases: Sequence[HeldLease], lease_ttl_ms: int) -> Renewal:
        return await self.breaker.probe(self._scheduler.renew(gateway, leases, lease_ttl_ms))

    async def settle(self, request: SettleRequest) -> Settlement | None:
        with self.breaker:
            return await self._scheduler.settle(request)

    async def settle_all(self, requests: Sequence[SettleRequest]) -> tuple[Settlement | None, ...]:
        with self.breaker:
            return await self._scheduler.settle_all(requests)

    async def reap(self, pools: Sequence[str], *, charge_lost: bool = True) -> tuple[Lost, ...]:
        with self.breaker:
            return await self._scheduler.reap(pools, charge_lost=charge_lost)

    async def heartbeat(self, state: ReplicaState) -> None:
        with self.breaker:
            await self._scheduler.heartbeat(state)

    async def deregister(self, state: ReplicaState) -> None:
        with self.breaker:
            await self._scheduler.deregister(state)

    async def rebuild(self, spent: Sequence[tuple[BudgetLine, int]], grace_ms: int = REBUILD_GRACE_MS) -> str:
        with self.breaker:
            return await self._scheduler.rebuild(spent, grace_ms)

    async def reregister(self, request: AdmitRequest, lease: HeldLease) -> Grant | None:
        with self.breaker:
            return await self._scheduler.reregister(request, lease)

    async def budget_states(self, budgets: Sequence[tuple[str, str]]) -> tuple[BudgetState, ...]:
        with self.breaker:
            return await self._scheduler.budget_states(budgets)

    async def pool_load(self, pool: str) -> PoolLoad:
        with self.breaker:
            return await self._scheduler.pool_load(pool)

    async def spend_today(self) -> Spend:
        with self.breaker:
            return await self._scheduler.spend_today()

    async def ping(self) -> None:
        with self.breaker:
            await self._scheduler.ping()

    async def close(self) -> None:
        await self._scheduler.close()
