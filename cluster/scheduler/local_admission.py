"""Admission by one gateway alone, while Redis is away (the outage table in cluster/scheduler/README.md).

Rates fall to this gateway's share, routing uses the last snapshot and the gateway's own load, and a budget
that cannot be checked lets nothing through, except within the allowance of a soft one.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict

from cluster.clock import Clock
from cluster.scheduler.snapshot import FleetSnapshot
from cluster.types import LOCAL_FENCE, AdmitRequest, Candidate, Grant, Refusal, RefusalReason, ReplicaState

RETRY_AFTER_MS = 1_000
BUCKETS = 100_000
"""Rate buckets kept at most; the one that was used longest ago is forgotten."""


class LocalAdmission:
    """Counts `decisions`. Bounded in memory: running calls, and `BUCKETS` buckets."""

    def __init__(self, clock: Clock, soft_allowance_micro_usd: int, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._allowance_micro_usd = soft_allowance_micro_usd
        self._rng = rng or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._arrivals_us: OrderedDict[str, int] = OrderedDict()
        self._running: dict[str, str] = {}
        self._load: Counter[str] = Counter()
        self._soft_micro_usd: Counter[str] = Counter()
        self.decisions = 0

    def admit(self, request: AdmitRequest, snapshot: FleetSnapshot, *, hard: bool) -> Grant | Refusal:
        """`hard`: the call draws on a budget that must not be overspent."""
        self.decisions += 1
        is_new = request.step == 0  # a later step has its money and its rates
        if is_new and (refusal := self._money_refusal(request, hard=hard)):
            return refusal
        chosen = self._choose(request, snapshot)
        if isinstance(chosen, Refusal):
            return chosen
        if is_new:
            if refusal := self._rate_refusal(request, snapshot.gateways):
                return refusal
            for line in request.budgets:
                self._soft_micro_usd[line.name] += request.hold_micro_usd
        candidate, replica = chosen
        self.ended(request.request_id)
        self._running[request.request_id] = replica.replica_id
        self._load[replica.replica_id] += 1
        return Grant(
            request_id=request.request_id,
            step=request.step,
            candidate=candidate,
            replica_id=replica.replica_id,
            address=replica.address,
            fence=LOCAL_FENCE,
            lease_expiry_ms=self._clock.now_ms() + request.lease_ttl_ms,
        )

    def ended(self, request_id: str) -> None:
        """Of any call; those that were admitted elsewhere are not known here."""
        replica_id = self._running.pop(request_id, None)
        if replica_id is not None:
            self._load[replica_id] -= 1
            if self._load[replica_id] <= 0:
                del self._load[replica_id]

    def store_is_back(self) -> None:
        """The next outage begins with a fresh allowance."""
        self._soft_micro_usd.clear()
        self._arrivals_us.clear()

    def _money_refusal(self, request: AdmitRequest, *, hard: bool) -> Refusal | None:
        if not request.budgets:
            return None
        spent = max(self._soft_micro_usd[line.name] for line in request.budgets)
        if hard or spent + request.hold_micro_usd > self._allowance_micro_usd:
            return Refusal(RefusalReason.UNCHECKED, RETRY_AFTER_MS)
        return None

    def _rate_refusal(self, request: AdmitRequest, gateways: int) -> Refusal | None:
        """GCRA with this gateway's share: every gateway takes `gateways` times as much from its own
        bucket."""
        now_us = self._clock.now_ms() * 1000
        arrivals = {}
        for rate in request.rates:
            if rate.increment_us > rate.burst_us:
                return Refusal(RefusalReason.TOO_LARGE, 0, rate.bucket)
            arrival = max(self._arrivals_us.get(rate.bucket, 0), now_us) + rate.increment_us * gateways
            # A single call may be larger than the share of the burst; it then empties the bucket.
            if arrival - now_us > max(rate.burst_us, rate.increment_us * gateways):
                return Refusal(
                    RefusalReason.RATE, -(-(arrival - now_us - rate.burst_us) // 1000), rate.bucket
                )
            arrivals[rate.bucket] = arrival
        for bucket, arrival in arrivals.items():
            self._arrivals_us[bucket] = arrival
            self._arrivals_us.move_to_end(bucket)
        while len(self._arrivals_us) > BUCKETS:
            self._arrivals_us.popitem(last=False)
        return None

    def _choose(
        self, request: AdmitRequest, snapshot: FleetSnapshot
    ) -> tuple[Candidate, ReplicaState] | Refusal:
        """Two random replicas, the one with less of this gateway's own load, within its share of the
        slots."""
        live_tier = None
        for candidate in request.candidates:
            if live_tier is not None and candidate.tier != live_tier and not request.spill:
                break
            ready = [
                each
                for each in snapshot.ready.get(candidate.pool, ())
                if each.replica_id not in request.exclude_replicas
            ]
            if not ready:
                continue
            live_tier = candidate.tier
            for pick in (self._rng.sample(ready, min(2, len(ready))), ready):
                best = min(pick, key=self._load_of)
                if self._load_of(best) < -(-best.max_concurrency // snapshot.gateways):
                    return candidate, best
        reason = RefusalReason.NO_REPLICA if live_tier is None else RefusalReason.CAPACITY
        return Refusal(reason, RETRY_AFTER_MS)

    def _load_of(self, replica: ReplicaState) -> int:
        return self._load[replica.replica_id]
