"""The scheduler in memory: the twin of the Lua operations, for tests and the simulator.

Plain on purpose: where the two differ, one of them is wrong, and this is the one to read. No call awaits
anything, so every call is atomic within its event loop.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster import keys
from cluster.clock import Clock
from cluster.scheduler.scheduler import (
    DEAD_AFTER_MS,
    EXPIRED_PER_ADMIT,
    EXPIRED_PER_REAP,
    LOOK_AT_REPLICAS,
    RESERVATION_TTL_MS,
    RETRY_AFTER_MS,
)
from cluster.types import (
    AdmitRequest,
    Grant,
    PoolLoad,
    Price,
    Refusal,
    RefusalReason,
    ReplicaPhase,
    ReplicaState,
    Settlement,
    Spend,
    Usage,
)


@dataclass(slots=True)
class _Lease:
    replica_id: str
    tokens: int
    fence: int
    expiry_ms: int


@dataclass(slots=True)
class _Replica:
    """`requests` and `tokens` are outstanding, from leases with a fence above `since`, the fence when the
    replica's epoch began. `heartbeat_ms` is None once the replica is gone; it stays in the books until its
    leases have ended."""

    state: ReplicaState
    since: int
    heartbeat_ms: int | None
    requests: int = 0
    tokens: int = 0

    @property
    def ready(self) -> bool:
        return self.heartbeat_ms is not None and self.state.phase is ReplicaPhase.READY

    @property
    def full(self) -> bool:
        return self.requests >= self.state.max_concurrency

    def counts(self, lease: _Lease) -> bool:
        return lease.replica_id == self.state.replica_id and lease.fence > self.since

    def dead(self, now_ms: int) -> bool:
        return self.heartbeat_ms is None or now_ms - self.heartbeat_ms >= DEAD_AFTER_MS


@dataclass(slots=True)
class _Pool:
    leases: dict[str, _Lease] = field(default_factory=dict)
    replicas: dict[str, _Replica] = field(default_factory=dict)

    def end_lease(self, request_id: str) -> None:
        lease = self.leases.pop(request_id, None)
        if lease is None:
            return
        books = self.replicas.get(lease.replica_id)
        if books is not None and books.counts(lease):
            books.requests -= 1
            books.tokens -= lease.tokens

    def end_expired_leases(self, now_ms: int, limit: int) -> int:
        expired = [(lease.expiry_ms, id_) for id_, lease in self.leases.items() if lease.expiry_ms <= now_ms]
        first = heapq.nsmallest(limit, expired)
        for _, request_id in first:
            self.end_lease(request_id)
        return len(first)

    def forget_replica(self, replica_id: str) -> None:
        books = self.replicas.get(replica_id)
        if books is None:
            return
        books.heartbeat_ms = None
        if books.requests == 0:
            del self.replicas[replica_id]


@dataclass(slots=True)
class _Reservation:
    grant: Grant
    large_price: Price
    forget_at_ms: int
    settlement: Settlement | None = None


class MemoryScheduler:
    """`Scheduler` of one process. Everything lives by `clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fence = 0
        self._pools: defaultdict[str, _Pool] = defaultdict(_Pool)
        self._reservations: dict[str, _Reservation] = {}
        self._spend: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def admit(self, request: AdmitRequest) -> Grant | Refusal:
        now_ms = self._clock.now_ms()
        known = self._reservation(request.request_id)
        if known is not None:
            if known.settlement is not None or known.grant.step > request.step:
                return _refusal(RefusalReason.ENDED)
            if known.grant.step == request.step:
                return known.grant

        own_pool = known.grant.candidate.pool if known is not None else None
        names = {candidate.pool for candidate in request.candidates}
        for name in names if own_pool is None else names | {own_pool}:
            self._pools[name].end_expired_leases(now_ms, EXPIRED_PER_ADMIT)
        own_lease = self._pools[own_pool].leases.get(request.request_id) if own_pool is not None else None

        any_full = False
        for candidate in request.candidates:
            pool = self._pools[candidate.pool]
            chosen, full = _choose(
                pool, now_ms, request.exclude_replicas, own_lease if candidate.pool == own_pool else None
            )
            if chosen is not None:
                if own_pool is not None:
                    self._pools[own_pool].end_lease(request.request_id)
                self._fence += 1
                grant = Grant(
                    request_id=request.request_id,
                    step=request.step,
                    candidate=candidate,
                    replica_id=chosen.state.replica_id,
                    address=chosen.state.address,
                    fence=self._fence,
                    lease_expiry_ms=now_ms + request.lease_ttl_ms,
                )
                chosen.requests += 1
                chosen.tokens += request.tokens
                pool.leases[request.request_id] = _Lease(
                    replica_id=chosen.state.replica_id,
                    tokens=request.tokens,
                    fence=self._fence,
                    expiry_ms=grant.lease_expiry_ms,
                )
                self._reservations[request.request_id] = _Reservation(
                    grant=grant, large_price=request.large_price, forget_at_ms=now_ms + RESERVATION_TTL_MS
                )
                return grant
            any_full = any_full or full
            if full and not request.spill:
                break
        return _refusal(RefusalReason.CAPACITY if any_full else RefusalReason.NO_REPLICA)

    async def renew(self, grants: Sequence[Grant], lease_ttl_ms: int) -> tuple[bool, ...]:
        expiry_ms = self._clock.now_ms() + lease_ttl_ms
        renewed = []
        for grant in grants:
            lease = self._pools[grant.candidate.pool].leases.get(grant.request_id)
            held = lease is not None and lease.fence == grant.fence
            if lease is not None and held:
                lease.expiry_ms = max(lease.expiry_ms, expiry_ms)
            renewed.append(held)
        return tuple(renewed)

    async def settle(self, request_id: str, pools: Sequence[str], usage: Usage) -> Settlement | None:
        # Redis needs `pools` to name its keys; here the grant knows its pool.
        del pools
        known = self._reservation(request_id)
        if known is None:
            return None
        if known.settlement is not None:
            return replace(known.settlement, first=False)
        candidate = known.grant.candidate
        self._pools[candidate.pool].end_lease(request_id)
        cost = candidate.price.cost_micro_usd(usage.prompt_tokens, usage.output_tokens)
        saved = known.large_price.cost_micro_usd(usage.prompt_tokens, usage.output_tokens) - cost
        self._spend[self._today()].update(
            {"spent": cost, "saved": saved, "calls": 1, f"calls:{candidate.tier}": 1}
        )
        known.settlement = Settlement(cost, saved, first=True)
        known.forget_at_ms = self._clock.now_ms() + RESERVATION_TTL_MS
        return known.settlement

    async def reap(self, pools: Sequence[str]) -> int:
        now_ms = self._clock.now_ms()
        ended = 0
        for name in dict.fromkeys(pools):
            pool = self._pools[name]
            ended += pool.end_expired_leases(now_ms, EXPIRED_PER_REAP)
            for replica_id in [id_ for id_, books in pool.replicas.items() if books.dead(now_ms)]:
                pool.forget_replica(replica_id)
        # Redis forgets keys by itself.
        for request_id in [id_ for id_, known in self._reservations.items() if known.forget_at_ms <= now_ms]:
            del self._reservations[request_id]
        return ended

    async def heartbeat(self, state: ReplicaState) -> None:
        replicas = self._pools[state.pool].replicas
        books = replicas.get(state.replica_id)
        if books is None or books.state.epoch != state.epoch:
            replicas[state.replica_id] = _Replica(state, self._fence, self._clock.now_ms())
        else:
            books.state = state
            books.heartbeat_ms = self._clock.now_ms()

    async def deregister(self, state: ReplicaState) -> None:
        self._pools[state.pool].forget_replica(state.replica_id)

    async def pool_load(self, pool: str) -> PoolLoad:
        now_ms = self._clock.now_ms()
        books = self._pools[pool]
        return PoolLoad(
            replicas=tuple(
                replace(entry.state, load_requests=entry.requests, load_tokens=entry.tokens)
                for _, entry in sorted(books.replicas.items())
                if not entry.dead(now_ms)
            ),
            leases=sum(lease.expiry_ms > now_ms for lease in books.leases.values()),
        )

    async def spend_today(self) -> Spend:
        sums = self._spend[self._today()]
        tiers = sorted(name for name in sums if name.startswith("calls:"))
        return Spend(
            spent_micro_usd=sums["spent"],
            saved_micro_usd=sums["saved"],
            calls=sums["calls"],
            calls_by_tier=tuple((name.removeprefix("calls:"), sums[name]) for name in tiers),
        )

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing to close."""

    def _reservation(self, request_id: str) -> _Reservation | None:
        known = self._reservations.get(request_id)
        if known is not None and known.forget_at_ms <= self._clock.now_ms():
            return None
        return known

    def _today(self) -> str:
        return keys.utc_day(self._clock.now_ms())


def _choose(
    pool: _Pool, now_ms: int, excluded: Sequence[str], own_lease: _Lease | None
) -> tuple[_Replica | None, bool]:
    """The best replica with a free slot or None, and whether a live one is full. `own_lease` is the
    request's lease of the step before, if it is in this pool: its slot counts as free."""
    ready = [books for books in pool.replicas.values() if books.ready and not books.dead(now_ms)]
    looked_at = heapq.nsmallest(
        LOOK_AT_REPLICAS + len(set(excluded)),
        ready,
        key=lambda books: (books.full, books.tokens, books.state.replica_id),
    )
    if own_lease is not None:
        looked_at += [
            books
            for books in ready
            if books.state.replica_id == own_lease.replica_id and books not in looked_at
        ]
    full = False
    free: list[tuple[int, int, str]] = []
    for books in looked_at:
        replica_id = books.state.replica_id
        if replica_id in excluded:
            continue
        requests, tokens = books.requests, books.tokens
        if own_lease is not None and books.counts(own_lease):
            requests -= 1
            tokens -= own_lease.tokens
        if requests >= books.state.max_concurrency:
            full = True
        else:
            free.append((tokens, requests, replica_id))
    return (pool.replicas[min(free)[2]] if free else None), full


def _refusal(reason: RefusalReason) -> Refusal:
    return Refusal(reason, RETRY_AFTER_MS[reason])
