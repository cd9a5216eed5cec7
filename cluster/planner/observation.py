"""What the planner is told: of each pool what does not change, and what is so now."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config import AutoscaleConfig, ClusterConfig
from cluster.scheduler.pool_demand import PoolDemand
from cluster.scheduler.scheduler import CLASSES


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What does not change of a pool. `group`: pools with the same one serve the same base model in the same
    tier, so one may do the work of another. `tokens_per_s` is the throughput of a replica with all slots busy
    as the configuration has it, `usd_per_hour` the price of a replica, `token_cap` the tokens that a replica
    may have promised (0: no cap)."""

    name: str
    group: tuple[str, ...]
    min_replicas: int
    max_replicas: int
    slots: int
    token_cap: int
    tokens_per_s: float
    usd_per_hour: float
    cold_start_s: float

    @property
    def usd_per_token(self) -> float:
        return self.usd_per_hour / self.tokens_per_s

    @property
    def is_fixed(self) -> bool:
        return self.min_replicas == self.max_replicas


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """Of a whole cluster."""

    pools: tuple[PoolFacts, ...]
    settings: AutoscaleConfig

    @classmethod
    def of(cls, config: ClusterConfig) -> FleetFacts:
        return cls(
            tuple(
                PoolFacts(
                    name=name,
                    group=(pool.tier, pool.base_model, pool.task),
                    min_replicas=pool.min_replicas,
                    max_replicas=pool.max_replicas,
                    slots=pool.max_concurrency,
                    token_cap=pool.max_outstanding_tokens,
                    tokens_per_s=pool.throughput.output_tokens_per_s,
                    usd_per_hour=config.node_classes[pool.node_class].paid_usd_per_hour * pool.node_share,
                    cold_start_s=0.0 if isinstance(pool.replicas, int) else pool.replicas.cold_start_s,
                )
                for name, pool in config.pools.items()
            ),
            config.autoscale,
        )


@dataclass(frozen=True, slots=True)
class PoolObservation:
    """A pool at one moment. `target` is what Ray Serve was told last; `ready` replicas take calls, the rest
    of the target is starting. `running` calls have a slot and hold `running_tokens`; `waiting` ones queue
    with `waiting_tokens`, `late` of them for longer than is good for their class, of which `wait_slo_s` is
    the tightest. `service_s` is how long a slot is taken on average (None: not known yet). `asked` counts
    calls that found the pool asleep and could not wait: it only grows, until Redis loses its data."""

    pool: str
    target: int
    ready: int
    running: int = 0
    running_tokens: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    late: int = 0
    wait_slo_s: float = math.inf
    service_s: float | None = None
    asked: int = 0

    @classmethod
    def of(cls, pool: str, target: int, demand: PoolDemand, settings: AutoscaleConfig) -> PoolObservation:
        """What a sample of the waiters says holds for all of them."""
        slos_s = [getattr(settings.wait_slo_s, each.value) for each in CLASSES]
        waiting, tickets = sum(demand.waiting), demand.tickets
        all_per_one = waiting / len(tickets) if tickets else 0.0
        late = sum([each.waited_ms > slos_s[each.level] * 1000 for each in tickets])
        return cls(
            pool=pool,
            target=target,
            ready=demand.ready,
            running=demand.running,
            running_tokens=demand.running_tokens,
            waiting=waiting,
            waiting_tokens=round(all_per_one * sum([each.tokens for each in tickets])),
            late=round(all_per_one * late),
            wait_slo_s=min(
                [slo_s for slo_s, count in zip(slos_s, demand.waiting, strict=True) if count],
                default=math.inf,
            ),
            service_s=None if demand.service_ms is None else demand.service_ms / 1000,
            asked=demand.asked,
        )

    @property
    def starting(self) -> int:
        return max(0, self.target - self.ready)

    @property
    def in_system(self) -> int:
        return self.running + self.waiting

    @property
    def attainment(self) -> float:
        """Share of the calls here that got their slot in time, or may still get it."""
        return 1.0 - self.late / self.in_system if self.in_system else 1.0

    @property
    def tokens_per_call(self) -> float:
        """Promised ones; 0 where there is no call."""
        return (self.running_tokens + self.waiting_tokens) / self.in_system if self.in_system else 0.0
