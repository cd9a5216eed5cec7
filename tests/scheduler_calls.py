"""Calls to a scheduler whose answer a test knows in kind."""

from __future__ import annotations

from cluster.scheduler.scheduler import Scheduler
from cluster.types import (
    AdmitRequest,
    Grant,
    HeldLease,
    Lost,
    Refusal,
    RefusalReason,
    Settlement,
    Waiting,
)
from tests.builders import settle_request

POOLS = ("small", "large")


async def grant_of(scheduler: Scheduler, request: AdmitRequest) -> Grant:
    answer = await scheduler.admit(request)
    assert isinstance(answer, Grant), answer
    return answer


async def waiting_of(scheduler: Scheduler, request: AdmitRequest) -> Waiting:
    answer = await scheduler.admit(request)
    assert isinstance(answer, Waiting), answer
    return answer


async def refusal_of(scheduler: Scheduler, request: AdmitRequest) -> Refusal:
    answer = await scheduler.admit(request)
    assert isinstance(answer, Refusal), answer
    return answer


async def reason_of(scheduler: Scheduler, request: AdmitRequest) -> RefusalReason:
    return (await refusal_of(scheduler, request)).reason


async def settle(scheduler: Scheduler, request: AdmitRequest, cost: int = 0, **changes: object) -> Settlement:
    """Under the budgets of its admission."""
    budgets = tuple((line.owner, line.window) for line in request.budgets)
    settlement = await scheduler.settle(
        settle_request(request.request_id, cost, **({"budgets": budgets} | changes))
    )
    assert settlement is not None
    return settlement


async def cancel(scheduler: Scheduler, request: AdmitRequest) -> Settlement:
    back = tuple((rate.bucket, rate.increment_us) for rate in request.rates)
    return await settle(scheduler, request, rates=back, cancelled=True)


async def polled(scheduler: Scheduler, waiting: Waiting, ticket_ttl_ms: int = 3_600_000) -> object:
    (answer,) = await scheduler.poll([waiting], ticket_ttl_ms)
    return answer


async def keep(scheduler: Scheduler, *grants: Grant, ttl_ms: int = 60_000, sent: bool = True) -> list[bool]:
    renewal = await scheduler.renew("gateway", [HeldLease(grant, sent) for grant in grants], ttl_ms)
    return list(renewal.kept)


async def reaped(scheduler: Scheduler, *, charge_lost: bool = True) -> dict[str, int]:
    """Request id → charge."""
    lost = await scheduler.reap(POOLS, charge_lost=charge_lost)
    assert all(isinstance(each, Lost) for each in lost)
    return {each.request_id: each.charge_micro_usd for each in lost}


async def load_of(scheduler: Scheduler, pool: str = "small") -> dict[str, tuple[int, int]]:
    """Replica → its outstanding requests and tokens."""
    books = await scheduler.pool_load(pool)
    return {state.replica_id: (state.load_requests, state.load_tokens) for state in books.replicas}


async def waiters_of(scheduler: Scheduler, pool: str = "small") -> int:
    return sum((await scheduler.pool_load(pool)).waiting)


async def budget_of(
    scheduler: Scheduler, owner: str = "tenant:acme", window: str = "20261122"
) -> tuple[int, int]:
    """Spent and held."""
    (state,) = await scheduler.budget_states([(owner, window)])
    return state.spent_micro_usd, state.held_micro_usd
