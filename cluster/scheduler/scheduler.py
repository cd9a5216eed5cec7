"""The scheduler's protocol. Two implementations pass the same contract tests: Redis and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.types import (
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Grant,
    HeldLease,
    Lost,
    PoolLoad,
    PriorityClass,
    Refusal,
    Renewal,
    ReplicaState,
    Settlement,
    SettleRequest,
    Spend,
    Waiting,
)

HEARTBEAT_PERIOD_S = 1.0
DEAD_AFTER_MS = 3_000
"""A replica without a heartbeat for this long gets no request and is dropped by `reap`."""

RESERVATION_TTL_MS = 24 * 3_600_000
"""How long an ended request id is remembered, so that a second settle is harmless."""

LOOK_AT_REPLICAS = 4
"""Of the least loaded, and of the holders of the adapter, per candidate: with the prefix-affine one a
choice sees at most nine, so that the cost of admit does not grow with the pool (SCHEDULER.md 8)."""

STATS_TTL_MS = 40 * 24 * 3_600_000
"""The counters of a day stay for longer than the longest month; the ledger keeps what they say for ever."""

EXPIRED_PER_REAP = 500
"""How many requests one reap ends per pool at most."""

GATEWAY_TTL_MS = 5_000
"""A gateway without a renewal for this long is no longer counted."""

REBUILD_GRACE_MS = 3_000
"""After data loss: gateways renew every second, so all that live have brought their holds back by then."""

CLASSES = tuple(PriorityClass)
CLASS_NUMBERS = {each: number for number, each in enumerate(CLASSES)}


class Scheduler(Protocol):
    """Admission, leases, queue, replica directory and spend. Every call is atomic and safe to repeat.

    Raises `SchedulerUnavailable` when the store does not answer in time.
    """

    async def admit(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        """Take rates and hold, choose a replica and lease it; where nothing is free, wait or refuse.

        Without `spill` only the candidates of the first tier with a living replica compete; with it all do.
        Among the replicas that are looked at the cheapest wins (`Placement`), then the one with the fewest
        outstanding tokens, the earlier candidate, the smaller id. Where others wait, nobody goes past them.
        The same request id and step again returns the stored answer; a higher step ends the lease or the
        place of the step before, unless it is refused. A refusal changes nothing.
        """
        ...

    async def poll(
        self, waiting: Sequence[Waiting], ticket_ttl_ms: int
    ) -> tuple[Grant | Waiting | None, ...]:
        """What became of waiters, who go on waiting for another `ticket_ttl_ms`. None: the wait is over
        (deadline, or reaped); cancel it, to have its money back."""
        ...

    async def renew(self, gateway: str, leases: Sequence[HeldLease], lease_ttl_ms: int) -> Renewal:
        """A gateway's sign of life: registers it and extends its leases; False where the lease is lost or the
        fence is old. A late lease that nobody has ended yet is extended: its slot is still taken."""
        ...

    async def settle_all(self, requests: Sequence[SettleRequest]) -> tuple[Settlement | None, ...]:
        """`settle` of each, in one round trip."""
        ...

    async def settle(self, request: SettleRequest) -> Settlement | None:
        """End a request: free its slot for the next waiter, replace its hold by its cost in the budgets,
        correct its rate buckets. Idempotent by request id; corrects the charge of a request that was reaped.
        None: never admitted (or forgotten after 24 h): nothing is charged."""
        ...

    async def reap(self, pools: Sequence[str], *, charge_lost: bool = True) -> tuple[Lost, ...]:
        """Drop dead replicas, give free slots to waiters, end requests whose lease or wait has run out. A
        lost call that had been dispatched is charged its hold if `charge_lost`; others are refunded."""
        ...

    async def heartbeat(self, state: ReplicaState) -> None:
        """Write a replica's entry; only `ready` ones can be chosen. A new epoch forgets its old load."""
        ...

    async def deregister(self, state: ReplicaState) -> None:
        """Take a replica out at once: no new request reaches it. Its leases go on until settled."""
        ...

    async def rebuild(self, spent: Sequence[tuple[BudgetLine, int]], grace_ms: int = REBUILD_GRACE_MS) -> str:
        """Raise the budgets to what the ledger knows (micro-USD), never lower them. Returns the epoch; after
        data loss it reads `rebuilding|<id>` for the grace, then `open|<id>`."""
        ...

    async def reregister(self, request: AdmitRequest, lease: HeldLease) -> Grant | None:
        """A call runs that the store has no lease for: after data loss its hold and lease are brought back.
        One that its gateway let run alone (`LOCAL_FENCE`) takes its place here from where it waits, or from a
        lease that nobody heard of. None: it is over, or known otherwise."""
        ...

    async def budget_states(self, budgets: Sequence[tuple[str, str]]) -> tuple[BudgetState, ...]:
        """Of each owner and window."""
        ...

    async def pool_load(self, pool: str) -> PoolLoad:
        """The pool's directory entries (all phases, living ones only), their load, leases and waiters."""
        ...

    async def spend_today(self) -> Spend: ...

    async def ping(self) -> None:
        """Raises SchedulerUnavailable when the store does not answer."""
        ...

    async def close(self) -> None: ...
