"""The scheduler's protocol. Two implementations pass the same contract tests: Redis and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.types import (
    AdmitRequest,
    Grant,
    PoolLoad,
    Refusal,
    RefusalReason,
    ReplicaState,
    Settlement,
    Spend,
    Usage,
)

HEARTBEAT_PERIOD_S = 1.0
DEAD_AFTER_MS = 3_000
"""A replica without a heartbeat for this long gets no request and is dropped by `reap`."""

RESERVATION_TTL_MS = 24 * 3_600_000
"""How long a settled request id is remembered, so that a second settle is harmless."""

LOOK_AT_REPLICAS = 8
"""Per candidate, so that the cost of admit does not grow with the pool (SCHEDULER.md 8)."""

EXPIRED_PER_ADMIT = 64
EXPIRED_PER_REAP = 1_000
"""How many expired leases one call ends per pool at most: a script stops the whole store while it runs."""

RETRY_AFTER_MS = {
    # A slot frees when a call ends, and that takes seconds: sooner is only load.
    RefusalReason.CAPACITY: 1_000,
    # Three heartbeats: the shortest time in which a lost replica can be noticed and a new one report.
    RefusalReason.NO_REPLICA: 3_000,
    # Never: it has ended.
    RefusalReason.ENDED: 0,
}


class Scheduler(Protocol):
    """Admission, leases, replica directory and spend. Every call is atomic and safe to repeat.

    Raises `SchedulerUnavailable` when the store does not answer in time.
    """

    async def admit(self, request: AdmitRequest) -> Grant | Refusal:
        """Choose the live replica with the fewest outstanding tokens in the first pool that has a free
        slot, and lease it. The same request id and step again returns the stored grant; a higher step
        ends the lease of the step before. Without `spill`, a live but full pool refuses instead of
        letting the next candidate have the call; a pool without a live replica is always passed over, and
        an excluded replica counts as none. A refusal leaves the lease of the step before as it is.
        """
        ...

    async def renew(self, grants: Sequence[Grant], lease_ttl_ms: int) -> tuple[bool, ...]:
        """Extend leases; False where the lease is lost or the fence is old. A late lease that nobody has
        ended yet is extended: its slot is still taken."""
        ...

    async def settle(self, request_id: str, pools: Sequence[str], usage: Usage) -> Settlement | None:
        """End the request: free its slot, add its cost at the prices frozen by its last step to today's
        spend. `pools` are those of the request's candidates. Idempotent by request id, also after the
        lease expired. None: never admitted (or forgotten after 24 h): nothing is charged."""
        ...

    async def reap(self, pools: Sequence[str]) -> int:
        """Free the slots of expired leases and drop dead replicas; returns how many leases ended, at
        most `EXPIRED_PER_REAP` per pool: the next tick ends the rest."""
        ...

    async def heartbeat(self, state: ReplicaState) -> None:
        """Write a replica's entry; only `ready` ones can be chosen. A new epoch forgets its old load."""
        ...

    async def deregister(self, state: ReplicaState) -> None:
        """Take a replica out at once: no new request reaches it. Its leases go on until settled."""
        ...

    async def pool_load(self, pool: str) -> PoolLoad:
        """The pool's directory entries (all phases, living ones only), their load, and live leases."""
        ...

    async def spend_today(self) -> Spend: ...

    async def ping(self) -> None:
        """Raises SchedulerUnavailable when the store does not answer."""
        ...

    async def close(self) -> None: ...
