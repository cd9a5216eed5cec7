"""A seeded Poisson trace of requests that no fleet of the given size can serve in time.

Same seed, same trace: every system under test gets the same requests at the same moments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.types import PriorityClass

TOKENS_PER_S = 500.0
"""Decode rate of one slot. Only ties the two measures together: fairness counts tokens, slots sleep."""
MEAN_SERVICE_S = 0.4
"""Long beside a dispatch through Ray (10 to 30 ms), short enough for hundreds of requests in a short run."""
SPREAD = 0.6
"""Sigma of the log-normal service times: p99 is four times the median."""

WORK_SHARES = {PriorityClass.INTERACTIVE: 0.3, PriorityClass.NORMAL: 0.4, PriorityClass.BATCH: 0.3}
"""At twice the capacity, interactive work alone is 0.6 of the capacity: a system that tells the classes apart
can start all of it in time. Interactive and normal together are 1.4: no system can serve both."""
DEADLINE_S = {PriorityClass.INTERACTIVE: 2.0, PriorityClass.NORMAL: 5.0, PriorityClass.BATCH: 10.0}
"""From arrival to the start of the work. Below the length of a run, so that keeping everybody waiting is no
way to meet them."""
TENANT_SHARES = {"flood": 3 / 6, "a": 1 / 6, "b": 1 / 6, "c": 1 / 6}
"""Of the arrivals of each class; all have the same weight. A class that gets less than two thirds of what it
asks for keeps its three small tenants waiting too: the fair share of each is then below 1/6."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The capacity under test: all slots are alike."""

    replicas: int = 2
    slots_per_replica: int = 8

    @property
    def slots(self) -> int:
        return self.replicas * self.slots_per_replica


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `at_s` counts from the start of the trace, `deadline_s` from `at_s` to the start of the
    work, `service_s` is how long it then holds a slot. Tenant names are unique across classes."""

    at_s: float
    request_id: str
    tenant: str
    priority: PriorityClass
    tokens: int
    service_s: float
    deadline_s: float


def poisson_arrivals(
    seed: int, seconds: float, fleet: Fleet, *, overload: float = 2.0
) -> tuple[Arrival, ...]:
    """Work for `overload` times the slots of the fleet, for `seconds`, in order of arrival.

    One Poisson process; class and tenant are drawn per arrival, so each tenant's arrivals are Poisson too.
    Service times have the same distribution in every class, so shares of arrivals are shares of work. They
    are scaled to ask for exactly `overload` (up to whole tokens): hundreds of draws alone are percents off.
    """
    draw = random.Random(seed)  # noqa: S311 (a trace, not a secret)
    per_s = overload * fleet.slots / MEAN_SERVICE_S
    times_s = []
    at_s = draw.expovariate(per_s)
    while at_s < seconds:
        times_s.append(at_s)
        at_s += draw.expovariate(per_s)
    sizes = [math.exp(draw.gauss(0, SPREAD)) for _ in times_s]
    tokens_per_size = overload * fleet.slots * seconds * TOKENS_PER_S / sum(sizes)
    priorities = draw.choices(list(WORK_SHARES), list(WORK_SHARES.values()), k=len(times_s))
    tenants = draw.choices(list(TENANT_SHARES), list(TENANT_SHARES.values()), k=len(times_s))
    return tuple(
        Arrival(
            at_s=at_s,
            request_id=f"r{number}",
            tenant=f"{priority}-{tenant}",
            priority=priority,
            tokens=(tokens := max(1, round(size * tokens_per_size))),
            service_s=tokens / TOKENS_PER_S,
            deadline_s=DEADLINE_S[priority],
        )
        for number, (at_s, size, priority, tenant) in enumerate(
            zip(times_s, sizes, priorities, tenants, strict=True)
        )
    )


def offered_load(arrivals: Iterable[Arrival], seconds: float, fleet: Fleet) -> float:
    """What a trace asks for, in units of the capacity."""
    return sum(each.service_s for each in arrivals) / (seconds * fleet.slots)
