"""What the cost of admit is measured for: fleets, and calls that come to them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.types import (
    AdmitRequest,
    BudgetLine,
    Candidate,
    Placement,
    Price,
    QueueTerms,
    RateCharge,
    ReplicaPhase,
    ReplicaState,
    SettleRequest,
)

ADAPTERS = 10_000
ADAPTERS_PER_REPLICA = 100
RUNNING_PER_REPLICA = 4
"""Calls that run on each replica all the time: the books of a fleet at work are larger than those of an idle
one."""
ROOMY = 100_000
"""Slots of a replica: nobody waits and nobody is refused."""
PRICE = Price(prompt_micro_usd_per_mtok=100_000, output_micro_usd_per_mtok=400_000)
PLENTY = 10**12
"""Limit of a budget (micro-USD) and burst of a rate bucket (us): never reached."""
HOLD_MICRO_USD = 100
LEASE_TTL_MS = 600_000
NOTE = "x" * 150
"""As long as the note of a gateway (`cluster.scheduler.terms`)."""


@dataclass(frozen=True, slots=True)
class PoolOfReplicas:
    """`adapters`: the replicas hold 100 of 10,000 adapters each, in turn."""

    name: str
    replicas: int
    adapters: bool = False
    slots: int = ROOMY

    def states(self) -> Iterator[ReplicaState]:
        for number in range(self.replicas):
            first = number * ADAPTERS_PER_REPLICA
            held = range(first, first + ADAPTERS_PER_REPLICA) if self.adapters else ()
            yield ReplicaState(
                f"{self.name}-{number:04}",
                self.name,
                ReplicaPhase.READY,
                address=f"10.{number // 250}.{number % 250}.1:9000",
                node=f"node-{number:04}",
                epoch=1,
                max_concurrency=self.slots,
                adapters=tuple((adapter_name(each % ADAPTERS), "loaded") for each in held),
            )


@dataclass(frozen=True, slots=True)
class Case:
    """Calls with these limits; each pool is a candidate of every call."""

    name: str
    pools: tuple[PoolOfReplicas, ...]
    budgets: int = 2
    rates: int = 2

    @property
    def adapters(self) -> bool:
        return any(pool.adapters for pool in self.pools)

    def rate_charges(self) -> tuple[RateCharge, ...]:
        names = ("requests:key:bench", "tokens:key:bench", "requests:tenant:bench", "tokens:tenant:bench")
        return tuple(RateCharge(name, 1_000, PLENTY) for name in names[: self.rates])

    def budget_lines(self) -> tuple[BudgetLine, ...]:
        windows = ("day:20300101", "month:203001", "total")
        lines = [
            BudgetLine(owner, window, PLENTY, 86_400_000)
            for window in windows
            for owner in ("key:bench", "tenant:bench")
        ]
        return tuple(lines[: self.budgets])

    def admission(
        self, request_id: str, draw: random.Random, *, queue: QueueTerms | None = None
    ) -> AdmitRequest:
        adapter = adapter_name(draw.randrange(ADAPTERS)) if self.adapters else None
        budgets = self.budget_lines()
        return AdmitRequest(
            request_id=request_id,
            step=0,
            candidates=tuple(
                Candidate(f"tier-{pool.name}", pool.name, "base", adapter, PRICE, 512, HOLD_MICRO_USD)
                for pool in self.pools
            ),
            tokens=draw.randrange(50, 1_500),
            lease_ttl_ms=LEASE_TTL_MS,
            gateway="bench",
            tenant="bench",
            spill=len(self.pools) > 1,  # all candidates compete
            placements=tuple(
                Placement(HOLD_MICRO_USD * 1000, 25, cold_nano_usd=200_000 if adapter else 0)
                for _ in self.pools
            ),
            rates=self.rate_charges(),
            budgets=budgets,
            hold_micro_usd=HOLD_MICRO_USD,
            checked=bool(budgets),
            queue=queue,
            note=NOTE,
        )

    def settlement(self, request_id: str) -> SettleRequest:
        token_buckets = [rate.bucket for rate in self.rate_charges() if rate.bucket.startswith("tokens:")]
        return SettleRequest(
            request_id=request_id,
            pools=tuple(pool.name for pool in self.pools),
            tier="bench",
            cost_micro_usd=HOLD_MICRO_USD // 2,
            saved_micro_usd=10,
            rates=tuple((bucket, 100) for bucket in token_buckets),
            budgets=tuple(line.owner_and_window for line in self.budget_lines()),
        )


def adapter_name(number: int) -> str:
    return f"adapter-{number:05}@1"


def fleet(replicas: int) -> PoolOfReplicas:
    return PoolOfReplicas(f"fleet{replicas}", replicas)


def headline_case(replicas: int) -> Case:
    """One key and one tenant budget, requests and tokens per minute of the key."""
    return Case(str(replicas), (fleet(replicas),))


HEADLINE_REPLICAS = (1, 10, 100, 1_000)


def plain_cases() -> tuple[Case, ...]:
    """The headline ones, then some with one thing changed."""
    return (
        *(headline_case(replicas) for replicas in HEADLINE_REPLICAS),
        Case("100, no limits", (fleet(100),), budgets=0, rates=0),
        Case("1000, no limits", (fleet(1_000),), budgets=0, rates=0),
        Case("100, six budgets", (fleet(100),), budgets=6),
        Case("1000, six budgets", (fleet(1_000),), budgets=6),
        Case("3 pools of 100", (fleet(100), PoolOfReplicas("second", 100), PoolOfReplicas("third", 100))),
    )


def adapter_cases() -> tuple[Case, ...]:
    """For a server of their own: the heartbeats of replicas with many adapters keep it busy."""
    return tuple(
        Case(
            f"{replicas}, of 10,000 adapters",
            (PoolOfReplicas(f"adapters{replicas}", replicas, adapters=True),),
        )
        for replicas in (100, 1_000)
    )
