"""From a key, a decision and the configuration to what admission needs: rates, budgets, hold, queue,
placement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cluster.config import ClusterConfig, PoolConfig, SchedulerConfig
from cluster.cost import MICRO_USD_PER_USD, SECONDS_PER_HOUR
from cluster.scheduler.key_terms import KeyTerms
from cluster.tenants import ApiKey
from cluster.types import (
    AdmitRequest,
    Candidate,
    Decision,
    Placement,
    PriorityClass,
    QueueTerms,
    RequestFeatures,
)

NANO_PER_MICRO = 1000
KEYS_KEPT = 10_000

AffineReplica = Callable[[str, str], str]
"""Pool and conversation → the replica that probably has the conversation so far cached, or ""."""


def tokens_at_most(decision: Decision, features: RequestFeatures) -> int:
    """Prompt and output tokens of a call, with all drafts of a cascade and what follows them: what its rates
    are charged until it is settled."""
    tokens = features.tokens_at_most(decision.candidates[0].max_tokens)
    cascade = decision.cascade
    return tokens if cascade is None else tokens * cascade.drafts + tokens_at_most(cascade.then, features)


@dataclass(frozen=True, slots=True)
class _PoolTerms:
    """What a pool costs to wait for, for calls of one class."""

    delay_nano_usd_per_s: float
    per_token_nano_usd: int
    cold_nano_usd: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    slots: int
    wake_ms: int

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
            wake_ms=_wake_ms(pool),
        )


def _wake_ms(pool: PoolConfig) -> int:
    """Only a pool that may sleep is waited for. One that has lost its replicas is passed over at once."""
    bounds = pool.replicas
    if isinstance(bounds, int) or bounds.min > 0:
        return 0
    return math.ceil(bounds.cold_start_s * 1000)


@dataclass(frozen=True, slots=True)
class _ClassTerms:
    """Of all calls of one class. `queue` None: they do not wait."""

    pools: dict[str, _PoolTerms]
    queue: QueueTerms | None


class AdmissionTerms:
    """One per gateway. Pure: the same call gives the same request."""

    def __init__(self, config: ClusterConfig, gateway: str, lease_ttl_ms: int) -> None:
        self._gateway = gateway
        self._lease_ttl_ms = lease_ttl_ms
        scheduler = config.scheduler
        self._deadline_ms = int(config.gateway.request_timeout_s * 1000)
        self._spill = config.router.spill
        self._classes = {
            priority: _ClassTerms(
                pools={name: _PoolTerms.of(pool, scheduler, priority) for name, pool in config.pools.items()},
                queue=QueueTerms(
                    longest_queue=scheduler.longest_queue,
                    longest_wait_ms=int(getattr(scheduler.longest_wait_s, priority.value) * 1000),
                    ageing_ms=int(scheduler.ageing_s * 1000),
                )
                if scheduler.longest_queue > 0
                else None,
            )
            for priority in PriorityClass
        }
        self._keys: dict[str, KeyTerms] = {}

    def of_key(self, key: ApiKey) -> KeyTerms:
        """Remembered for as long as the key is the same."""
        known = self._keys.get(key.key_id)
        if known is None or known.key is not key:
            if len(self._keys) >= KEYS_KEPT:
                self._keys.clear()
            known = self._keys[key.key_id] = KeyTerms(key)
        return known

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
        of_key = self.of_key(key)
        priority = of_key.class_of(wanted)
        first = decision.candidates[0]
        tokens = features.tokens_at_most(first.max_tokens)
        budgets = of_key.budget_lines(now_ms)
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
            rates=of_key.rate_charges(tokens_at_most(decision, features)),
            budgets=budgets,
            hold_micro_usd=decision.hold_micro_usd,
            checked=bool(budgets),
            epoch_id=epoch_id if budgets else "",
            queue=self._classes[priority].queue,
            note=of_key.note(first, now_ms),
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
        pools = self._classes[priority].pools
        return tuple([_placement(each, features, pools[each.pool], affine_replica) for each in candidates])


def _placement(
    candidate: Candidate, features: RequestFeatures, pool: _PoolTerms, affine_replica: AffineReplica
) -> Placement:
    conversation = features.conversation
    affine = affine_replica(candidate.pool, conversation) if conversation else ""
    credit_nano_usd = 0
    if affine:
        shared_tokens = features.shared_tokens_estimate
        saved_nano_usd = candidate.price.cost_micro_usd(shared_tokens, 0) * NANO_PER_MICRO
        saved_s = shared_tokens / pool.prompt_tokens_per_s
        credit_nano_usd = max(1, saved_nano_usd + round(pool.delay_nano_usd_per_s * saved_s))
    service_s = (
        features.prompt_tokens_estimate / pool.prompt_tokens_per_s
        + candidate.max_tokens * features.sequences / pool.output_tokens_per_s
    ) * pool.slots
    return Placement(
        base_nano_usd=candidate.price_of_success_micro_usd * NANO_PER_MICRO,
        per_token_nano_usd=pool.per_token_nano_usd,
        cold_nano_usd=pool.cold_nano_usd if candidate.adapter is not None else 0,
        affine_replica=affine,
        credit_nano_usd=credit_nano_usd,
        service_us=int(service_s * 1e6) + 1,
        slots=pool.slots,
        wake_ms=pool.wake_ms,
    )
