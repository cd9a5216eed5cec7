"""One pool's replicas and leases in memory: the twin of `lua/_pool.lua`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field

from cluster.scheduler.scheduler import DEAD_AFTER_MS
from cluster.types import Candidate, ReplicaPhase, ReplicaState

FULL = 10**12
"""On the score of a replica at its cap: every free replica sorts before it."""

EWMA_SHARE = 8


class Ranking:
    """Names by score, then by name: what Redis calls a zset."""

    __slots__ = ("_order", "_scores")

    def __init__(self) -> None:
        self._scores: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: object) -> bool:
        return name in self._scores

    def put(self, name: str, score: int) -> None:
        self.drop(name)
        self._scores[name] = score
        insort(self._order, (score, name))

    def drop(self, name: str) -> None:
        score = self._scores.pop(name, None)
        if score is not None:
            del self._order[bisect_left(self._order, (score, name))]

    def score(self, name: str) -> int:
        return self._scores[name]

    def first(self, count: int) -> list[str]:
        return [name for _, name in self._order[:count]]

    def below(self, score: int) -> int:
        """How many have a lower score; so also the place of the first one at or above it."""
        return bisect_left(self._order, (score, ""))

    def at(self, place: int) -> tuple[int, str] | None:
        return self._order[place] if place < len(self._order) else None


@dataclass(slots=True)
class Lease:
    """`dispatched`: an engine may have run the call, in this step or in one before."""

    candidate: Candidate
    replica_id: str
    address: str
    tokens: int
    fence: int
    granted_ms: int
    expiry_ms: int
    dispatched: bool


@dataclass(slots=True)
class Replica:
    """`requests` and `tokens` are outstanding, from leases with a fence above `since`, the fence when the
    replica's epoch began. `heartbeat_ms` is None once the replica is gone; it stays in the books until its
    leases have ended. `state` is None before its first heartbeat, where leases were brought back earlier."""

    since: int
    state: ReplicaState | None = None
    heartbeat_ms: int | None = None
    requests: int = 0
    tokens: int = 0
    loads: int = 0
    """Adapters that load there: as it said itself, and those of grants since."""

    @property
    def address(self) -> str:
        return self.state.address if self.state else ""

    @property
    def score(self) -> int:
        slots = self.state.max_concurrency if self.state else 1
        full = self.requests >= slots or 0 < self.token_cap <= self.tokens
        return self.tokens + (FULL if full else 0)

    @property
    def token_cap(self) -> int:
        """0: none."""
        return self.state.max_outstanding_tokens if self.state else 0

    def fits(self, tokens: int) -> bool:
        """Of a replica with a free slot. A call that is larger than the token cap still fits an idle one."""
        return self.token_cap == 0 or self.requests == 0 or self.tokens + tokens <= self.token_cap

    def dead(self, now_ms: int) -> bool:
        return self.heartbeat_ms is None or now_ms - self.heartbeat_ms >= DEAD_AFTER_MS


@dataclass(frozen=True, slots=True)
class Terms:
    """What makes one replica dearer than another, in nano-USD (`cluster.types.Placement`). `holders` have the
    adapter; `cold` is 0 where there is none."""

    base: int
    per_token: int
    cold: int
    affine: str
    credit: int
    holders: Container[str] = ()

    def is_cold_on(self, replica_id: str) -> bool:
        return self.cold > 0 and replica_id not in self.holders

    def cost_on(self, replica_id: str, tokens: int, loads: int) -> int:
        """`loads`: of other adapters, one after the other, before this call's could load there."""
        cost = self.base + tokens * self.per_token
        if self.is_cold_on(replica_id):
            cost += self.cold * (1 + loads)
        if self.affine == replica_id:
            cost -= self.credit
        return cost


@dataclass(frozen=True, slots=True, order=True)
class Offer:
    """The smallest one wins."""

    cost_nano_usd: int
    tokens: int
    replica_id: str

    @property
    def rank(self) -> tuple[int, int]:
        """Between pools, whose replicas' ids say nothing."""
        return self.cost_nano_usd, self.tokens


@dataclass(slots=True)
class PoolBooks:
    """`ready` has the replicas that may be chosen, by outstanding tokens; `holders` those with an adapter, by
    their tokens as of the last heartbeat or grant. `service_us`: how long a lease lasts; None before the
    first has ended. `asked`: calls that found the pool asleep and could not wait for it."""

    leases: dict[str, Lease] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    ready: Ranking = field(default_factory=Ranking)
    holders: defaultdict[str, Ranking] = field(default_factory=lambda: defaultdict(Ranking))
    service_us: int | None = None
    asked: int = 0

    # Leases.

    def begin_lease(self, request_id: str, lease: Lease, *, is_cold: bool = False) -> None:
        """`is_cold`: the replica has to load the call's adapter."""
        self.leases[request_id] = lease
        self._change_load(lease, 1)
        if is_cold:
            self.replicas[lease.replica_id].loads += 1

    def end_lease(self, request_id: str) -> Lease | None:
        """A slot is never freed twice: None where there is no lease."""
        lease = self.leases.pop(request_id, None)
        if lease is not None:
            self._change_load(lease, -1)
        return lease

    def _change_load(self, lease: Lease, by: int) -> None:
        """An older lease is not in the load: the replica has restarted, and its load was set to zero then."""
        replica = self.replicas.get(lease.replica_id)
        if replica is None or lease.fence <= replica.since:
            return
        replica.requests += by
        replica.tokens += by * lease.tokens
        if lease.replica_id in self.ready:
            self.ready.put(lease.replica_id, replica.score)

    def learn_service_time(self, lease: Lease, now_ms: int) -> None:
        """An EWMA over ended leases."""
        took_us = max(0, now_ms - lease.granted_ms) * 1000
        if self.service_us is not None:
            took_us = self.service_us + (took_us - self.service_us) // EWMA_SHARE
        self.service_us = took_us

    # Replicas.

    def report(self, state: ReplicaState, fence: int, now_ms: int) -> None:
        """A heartbeat."""
        replica_id = state.replica_id
        replica = self.replicas.get(replica_id)
        if replica is None:
            replica = self.replicas[replica_id] = Replica(since=fence)
        elif replica.state is not None and replica.state.epoch != state.epoch:
            # It restarted: what ran on it is gone, and leases so far no longer count.
            replica.since, replica.requests, replica.tokens = fence, 0, 0
        replica.state = state
        replica.heartbeat_ms = now_ms
        replica.loads = state.adapters_loading
        ready = state.phase is ReplicaPhase.READY
        if ready:
            self.ready.put(replica_id, replica.score)
        else:
            self.ready.drop(replica_id)
        held = set(state.held_adapters) if ready else set()
        self._leave_adapters(replica_id, but=held)
        for name in held:
            self.holders[name].put(replica_id, replica.tokens)

    def forget(self, replica_id: str) -> None:
        """Its load stays as long as leases count in it: the replica may come back in the same epoch."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            return
        self.ready.drop(replica_id)
        self._leave_adapters(replica_id)
        replica.heartbeat_ms = None
        if replica.requests == 0:
            del self.replicas[replica_id]

    def _leave_adapters(self, replica_id: str, but: Collection[str] = ()) -> None:
        for name, holders in self.holders.items():
            if name not in but:
                holders.drop(replica_id)

    def cheapest(
        self,
        tokens: int,
        terms: Terms,
        excluded: Collection[str],
        *,
        look_at: int,
        also: Iterable[str],
        now_ms: int,
    ) -> tuple[Offer | None, bool]:
        """Of the `look_at` least loaded replicas and those named by `also`: the cheapest one that lives and
        has room; and whether a live one is there at all. A dead one leaves `ready`: whoever notices it."""
        live = False
        unfit: set[str] = set()
        while True:
            free: list[Offer] = []
            full: list[str] = []
            for replica_id in dict.fromkeys((*self.ready.first(look_at), *also)):
                if replica_id not in self.ready or replica_id in excluded or replica_id in unfit:
                    continue
                outstanding = self.ready.score(replica_id)
                if outstanding >= FULL:
                    full.append(replica_id)
                else:
                    cost = terms.cost_on(replica_id, outstanding, self.replicas[replica_id].loads)
                    free.append(Offer(cost, outstanding, replica_id))
            if free:
                best = min(free)
                replica = self.replicas[best.replica_id]
                if replica.dead(now_ms):
                    self.ready.drop(best.replica_id)
                elif replica.fits(tokens):
                    return best, True
                else:
                    live = True
                    unfit.add(best.replica_id)
                continue
            dead = [replica_id for replica_id in full if self.replicas[replica_id].dead(now_ms)]
            for replica_id in dead:
                self.ready.drop(replica_id)
            live = live or len(dead) < len(full)
            if live or not dead:
                return None, live
