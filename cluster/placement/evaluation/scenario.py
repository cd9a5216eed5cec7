"""What is simulated: the fleet, and calls whose popularity changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scenario:
    """The adapter of popularity rank r is asked for in proportion to 1 / r^zipf. Every `redraw_every` calls
    the ranks of `redrawn_share` of the adapters, drawn evenly, are dealt anew among them.

    A replica computes `calls_at_once` calls with adapters from `slots` places. Service times are lognormal
    with mean `service_s` and shape `service_sigma` (0.8: its p95 is 2.7 times the mean). `utilisation` is
    calls per second x `service_s` over all request slots; loads, which hold a request slot too, come on top.
    `warm_up` calls come before those that are counted.
    """

    adapters: int = 500
    replicas: int = 8
    slots: int = 16
    utilisation: float = 0.7
    load_s: float = 0.3
    zipf: float = 1.0
    redrawn_share: float = 0.05
    redraw_every: int = 2_000
    calls_at_once: int = 8
    service_s: float = 2.0
    service_sigma: float = 0.8
    prefill_s: float = 0.05
    warm_up: int = 10_000
    calls: int = 30_000

    def __post_init__(self) -> None:
        for name in ("adapters", "replicas", "slots", "calls_at_once", "redraw_every", "calls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.utilisation < 1:
            raise ValueError(f"utilisation must be between 0 and 1, not {self.utilisation:g}")
        if not 0 <= self.redrawn_share <= 1:
            raise ValueError(f"redrawn_share must be between 0 and 1, not {self.redrawn_share:g}")
        if self.warm_up < 0 or self.load_s < 0 or self.service_s <= 0 or self.service_sigma < 0:
            raise ValueError(f"a time or a count of the scenario is too small: {self}")

    @property
    def calls_per_s(self) -> float:
        return self.utilisation * self.replicas * self.calls_at_once / self.service_s


@dataclass(frozen=True, slots=True)
class Stretch:
    """Calls between two changes of popularity. `shares[a]`: of adapter a. The arrays are parallel: adapter,
    arrival and service time of each call, in order of arrival."""

    shares: NDArray[np.float64]
    adapters: NDArray[np.int64]
    arrivals_s: NDArray[np.float64]
    services_s: NDArray[np.float64]


def stretches(scenario: Scenario, seed: int) -> Iterator[Stretch]:
    """Poisson arrivals. The same seed gives every policy the same calls."""
    random = np.random.default_rng(seed)
    by_rank = 1.0 / np.arange(1, scenario.adapters + 1) ** scenario.zipf
    by_rank /= by_rank.sum()
    of_rank = random.permutation(scenario.adapters)
    sigma = scenario.service_sigma
    log_mean = math.log(scenario.service_s) - sigma * sigma / 2
    redrawn = round(scenario.redrawn_share * scenario.adapters)
    now_s, left = 0.0, scenario.warm_up + scenario.calls
    while left > 0:
        count = min(left, scenario.redraw_every)
        shares = np.empty(scenario.adapters)
        shares[of_rank] = by_rank
        arrivals_s = now_s + random.exponential(1 / scenario.calls_per_s, count).cumsum()
        adapters = of_rank[random.choice(scenario.adapters, count, p=by_rank)]
        yield Stretch(shares, adapters, arrivals_s, random.lognormal(log_mean, sigma, count))
        now_s, left = float(arrivals_s[-1]), left - count
        ranks = random.choice(scenario.adapters, redrawn, replace=False)
        of_rank[ranks] = of_rank[random.permutation(ranks)]
