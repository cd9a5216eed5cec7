"""From a key, a decision and the configuration to what admission needs: rates, budgets, hold, queue,
placement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from cluster.clock import DAY_MS
from cluster.config import ClusterConfig, PoolConfig, SchedulerConfig
from cluster.cost import MICRO_USD_PER_USD, SECONDS_PER_HOUR
from cluster.scheduler.scheduler import CLASS_NUMBERS
from cluster.tenants import ApiKey, BudgetWindow, KeyLimits, RateLimit, key_owner, tenant_owner, window_name
from cluster.types import (
    AdmitRequest,
    BudgetLine,
    Candidate,
    Decision,
    Placement,
    PriorityClass,
    QueueTerms,
    RateCharge,
    RequestFeatures,
    Usage,
)

NANO_PER_MICRO = 1000
MINUTE_US = 60_000_000

WINDOW_TTL_MS = {BudgetWindow.DAY: 3 * DAY_MS, BudgetWindow.MONTH: 40 * DAY_MS, BudgetWindow.TOTAL: 0}
"""How long Redis keeps a window: until nobody settles into it any more."""

AffineReplica = Callable[[str, str], str]
"""Pool and conversation → the replica that probably has the conversation so far cached, or ""."""


def increment_us(cost: int, limit: RateLimit) -> int:
    """What `cost` takes from the bucket, rounded up per call: a token's share of a high rate is below 1
    us."""
    return -(-cost * MINUTE_US // limit.per_minute)


def rate_charge(bucket: str, cost: int, limit: RateLimit) -> RateCharge:
    return RateCharge(bucket, increment_us(cost, limit), limit.burst * MINUTE_US // limit.per_minute)


@dataclass(frozen=True, slots=True)
class _PoolTerms:
    """What a pool costs to wait for, for calls of one class."""

    delay_nano_usd_per_s: float
    per_token_nano_usd: int
    cold_nano_usd: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    slots: int

    @classmethod
    def of(cls, pool: PoolConfig, scheduler: SchedulerConfig, priority: PriorityClass) -> _PoolTerms:
        usd_per_hour = getattr(scheduler.delay_usd_per_hour, priority.value)
        delay_nano_usd_per_s = usd_per_hour * MICRO_USD_PER_USD * NANO_PER_MICRO / SECONDS_PER_HOUR
        return cls(
            delay_nano_usd_per_s=delay_nano_usd_per_s,
            # At least 1: among equal replicas the one with fewer outstanding tokens is always the better one.
            per_token_nano_usd=max(1, round(delay_nano_usd_per_s / pool.throughput.output_tokens_per_s)),
            cold_nano_usd=round(max(1.0, delay_nano_usd_per_s) * scheduler.adapter_load_s),
            prompt_tokens_per_s=pool.throughput.prompt_tokens_per_s,
            output_tokens_per_s=pool.throughput.output_tokens_per_s,
            slots=pool.max_concurrency,
        )


class AdmissionTerms:
    """One per gateway. Pure: the same call gives the same request."""

    def __init__(self, config: ClusterConfig, gateway: str, lease_ttl_ms: int) -> None:
        self._gateway = gateway
        self._lease_ttl_ms = lease_ttl_ms
        scheduler = config.scheduler
        self._pools = {
            (name, priority): _PoolTerms.of(pool, scheduler, priority)
            for name, pool in config.pools.items()
            for priority in PriorityClass
        }
        self._deadline_ms = int(config.gateway.request_timeout_s * 1000)
        self._spill = config.router.spill
        self._may_wait = scheduler.longest_queue > 0
        self._queue_terms = {
            priority: QueueTerms(
                longest_queue=scheduler.longest_queue,
                longest_wait_ms=int(getattr(scheduler.longest_wait_s, priority.value) * 1000),
                ageing_ms=int(scheduler.ageing_s * 1000),
            )
            for priority in PriorityClass
        }

    def request(
        self,
        request_id: str,
        key: ApiKey,
        decision: Decision,
        features: RequestFeatures,
        *,
        now_ms: int,
        wanted: PriorityClass | None = None,
        deadline_ms: int | None = None,
        epoch_id: str = "",
        affine_replica: AffineReplica = lambda _pool, _conversation: "",
    ) -> AdmitRequest:
        """Step 0 of a call. `now_ms` only names the budget windows. The class is what the call asks for
        (`normal` if it does not), bounded by its key and tenant."""
        allowed = (wanted or PriorityClass.NORMAL, key.limits.highest_class, key.tenant_limits.highest_class)
        priority = max(allowed, key=CLASS_NUMBERS.__getitem__)
        tokens = features.tokens_at_most(decision.first.max_tokens)
        return AdmitRequest(
            request_id=request_id,
            step=0,
            candidates=decision.candidates,
            tokens=tokens,
            lease_ttl_ms=self._lease_ttl_ms,
            gateway=self._gateway,
            tenant=key.tenant,
            priority=priority,
            deadline_ms=deadline_ms or self._deadline_ms,
            spill=self._spill,
            placements=self.placements(decision.candidates, features, priority, affine_replica),
            rates=rate_charges(key, tokens),
            budgets=budget_lines(key, now_ms),
            hold_micro_usd=decision.hold_micro_usd,
            checked=bool(key.budgets),
            epoch_id=epoch_id if key.budgets else "",
            queue=self._queue_terms[priority] if self._may_wait else None,
            note=orjson.dumps(
                {
                    "tenant": key.tenant,
                    "key_id": key.key_id,
                    "tier": decision.first.tier,
                    "pool": decision.first.pool,
                    "model": decision.first.model,
                    "admitted_ms": now_ms,
                }
            ).decode(),
        )

    def placements(
        self,
        candidates: tuple[Candidate, ...],
        features: RequestFeatures,
        priority: PriorityClass,
        affine_replica: AffineReplica,
    ) -> tuple[Placement, ...]:
        """Money plus time at its price: outstanding tokens delay the call by their service time, a cold
        adapter by its loading; a cached prefix saves the price and the time of its tokens.

        A conversation has one affine replica from its first call on: a system prompt that many conversations
        share is soon cached everywhere, the rest of a conversation only where it ran. Its first call, which
        may find nothing there, has at least the credit that decides between equal replicas."""
        return tuple(self._placement(each, features, priority, affine_replica) for each in candidates)

    def _placement(
        self,
        candidate: Candidate,
        features: RequestFeatures,
        priority: PriorityClass,
        affine_replica: AffineReplica,
    ) -> Placement:
        pool = self._pools[candidate.pool, priority]
        conversation = features.conversation
        affine = affine_replica(candidate.pool, conversation) if conversation else ""
        shared_tokens = features.shared_tokens_estimate
        shared_s = shared_tokens / pool.prompt_tokens_per_s
        saved_nano_usd = candidate.price.cost_micro_usd(shared_tokens, 0) * NANO_PER_MICRO
        service_s = (
            features.prompt_tokens_estimate / pool.prompt_tokens_per_s
            + candidate.max_tokens * features.sequences / pool.output_tokens_per_s
        ) * pool.slots
        return Placement(
            base_nano_usd=candidate.estimated_cost_micro_usd * NANO_PER_MICRO,
            per_token_nano_usd=pool.per_token_nano_usd,
            cold_nano_usd=pool.cold_nano_usd if candidate.adapter is not None else 0,
            affine_replica=affine,
            credit_nano_usd=max(1, saved_nano_usd + round(pool.delay_nano_usd_per_s * shared_s))
            if affine
            else 0,
            service_us=max(1, round(service_s * 1e6)),
            slots=pool.slots,
        )


def budget_lines(key: ApiKey, now_ms: int) -> tuple[BudgetLine, ...]:
    return tuple(
        BudgetLine(
            budget.owner,
            window_name(budget.window, now_ms),
            budget.limit_micro_usd,
            WINDOW_TTL_MS[budget.window],
        )
        for budget in key.budgets
    )


def rate_charges(key: ApiKey, tokens: int) -> tuple[RateCharge, ...]:
    """The buckets of a call in a fixed order; `rate_corrections` names the same ones."""
    return tuple(rate_charge(bucket, cost, limit) for bucket, cost, limit in _buckets(key, tokens))


def rate_corrections(key: ApiKey, tokens: int, usage: Usage) -> tuple[tuple[str, int], ...]:
    """What the end of a call gives back to its token buckets, in us (negative: it used more)."""
    used = usage.prompt_tokens + usage.output_tokens
    return tuple(
        (bucket, increment_us(tokens, limit) - increment_us(used, limit))
        for bucket, _, limit in _buckets(key, tokens)
        if bucket.startswith("tokens:")
    )


def rate_refunds(key: ApiKey, tokens: int) -> tuple[tuple[str, int], ...]:
    """Everything back: the call never ran."""
    return tuple((bucket, increment_us(cost, limit)) for bucket, cost, limit in _buckets(key, tokens))


def _buckets(key: ApiKey, tokens: int) -> list[tuple[str, int, RateLimit]]:
    owners: tuple[tuple[str, KeyLimits], ...] = (
        (key_owner(key.key_id), key.limits),
        (tenant_owner(key.tenant), key.tenant_limits),
    )
    found = []
    for owner, limits in owners:
        if limits.requests is not None:
            found.append((f"requests:{owner}", 1, limits.requests))
        if limits.tokens is not None:
            found.append((f"tokens:{owner}", tokens, limits.tokens))
    return found
