"""How many replicas' worth of work a pool is asked for, from what was seen of late.

By Little's law: calls that arrive x how long they take a slot. What arrives is what ended plus what the pool
holds more than before, so a queue that grows counts as what comes, not as what lies there: a plan made of the
length of a queue grows too far, and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.planner.observation import PoolFacts, PoolObservation

LONGEST_WINDOW_S = 300.0

SHORTEST_S = 1.0
"""In which a backlog can be meant to be gone."""

FEWEST_SAMPLES = 8
"""A rise is not looked for in fewer than twice as many."""

SURE = 1.5
"""Standard deviations by which a rise must exceed what chance would make of a steady load."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`busy` is in replicas."""

    at_s: float
    running: int
    in_system: int
    busy: float


@dataclass(frozen=True, slots=True)
class Demand:
    """In replicas of the pool, all of whose slots are busy. `busy`: what arrives now. `forecast`: what will
    arrive when a replica that is asked for now is ready; never less. `backlog`: what it takes on top to serve
    those who wait already within the time of a cold start. Where it `clears` by what is there or starting,
    no replica is worth starting for it, as it would come too late; but none is to be taken away."""

    busy: float
    forecast: float
    backlog: float
    clears: bool

    @property
    def least(self) -> float:
        return self.forecast if self.clears else self.forecast + self.backlog

    @property
    def enough(self) -> float:
        return self.busy + self.backlog


def window_s(seen: PoolObservation, shortest_s: float) -> float:
    """Arrivals are counted over at least the time that one call takes: over less, their number is noise."""
    return min(LONGEST_WINDOW_S, max(shortest_s, seen.service_s or 0.0))


def busy_replicas(pool: PoolFacts, seen: PoolObservation, samples: Sequence[Sample], at_s: float) -> float:
    """`samples` are those of the window, the oldest first."""
    arriving: float = seen.in_system
    if samples and seen.service_s is not None and at_s > samples[0].at_s:
        running = sum([each.running for each in samples]) / len(samples)
        growth_per_s = (seen.in_system - samples[0].in_system) / (at_s - samples[0].at_s)
        arriving = max(0.0, running + seen.service_s * growth_per_s)
    by_slots = arriving / pool.slots
    by_tokens = arriving * seen.tokens_per_call / pool.token_cap if pool.token_cap else 0.0
    return max(by_slots, by_tokens)


def demand_of(
    pool: PoolFacts, seen: PoolObservation, samples: Sequence[Sample], *, ahead_s: float, most: float
) -> Demand:
    """`samples` end with that of now. The forecast is a straight line, `ahead_s` further on, and at most
    `most` times what is known."""
    busy = samples[-1].busy
    calls_per_replica_s = pool.slots / seen.service_s if seen.service_s else 0.0
    rise = max(0.0, _rise_per_s(samples, calls_per_replica_s) * ahead_s)
    backlog, clears = _backlog(pool, seen, busy)
    return Demand(busy, min(busy * most, busy + rise), backlog, clears)


def _rise_per_s(samples: Sequence[Sample], calls_per_replica_s: float) -> float:
    """How fast demand rises, as far as that is more than chance. The longer one looks, the surer one is; the
    shorter, the sooner a turn is seen: so the last samples, twice as many, and so on, and the steepest of
    what they say. Arrivals are counted, so the number of a half scatters by its square root (Poisson)."""
    steepest = 0.0
    if not calls_per_replica_s:
        return steepest
    half = FEWEST_SAMPLES
    while 2 * half <= len(samples):
        early, late = samples[-2 * half : -half], samples[-half:]
        apart_s = late[0].at_s - early[0].at_s
        before, after = (sum([each.busy for each in part]) / half for part in (early, late))
        chance = math.sqrt((before + after) / (calls_per_replica_s * apart_s))
        steepest = max(steepest, (after - before - SURE * chance) / apart_s)
        half *= 2
    return steepest


def _backlog(pool: PoolFacts, seen: PoolObservation, busy: float) -> tuple[float, bool]:
    """See `Demand`."""
    if seen.waiting == 0:
        return 0.0, True
    measured = pool.slots * seen.tokens_per_call / seen.service_s if seen.service_s else 0.0
    work_s = seen.waiting_tokens / (measured or pool.tokens_per_s)
    in_time_s = max(pool.cold_start_s, seen.wait_slo_s, SHORTEST_S)
    spare = seen.ready + seen.starting - busy
    return work_s / in_time_s, spare > 0 and work_s / spare <= in_time_s
