"""Endless arrival times in seconds, ascending, fixed by the random source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

from loadtest.workloads.grammar import Diurnal, Gamma, Poisson


def arrival_times(process: Poisson | Gamma | Diurnal, random: Random) -> Iterator[float]:
    match process:
        case Poisson(rate):
            yield from _renewals(lambda: random.expovariate(rate))
        case Gamma(rate, cv):
            shape, scale_s = 1 / cv**2, cv**2 / rate
            yield from _renewals(lambda: random.gammavariate(shape, scale_s))
        case Diurnal():
            yield from _thinned(process, random)


def _renewals(gap_s: Callable[[], float]) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += gap_s()
        yield at_s


def _thinned(process: Diurnal, random: Random) -> Iterator[float]:
    """Lewis and Shedler 1979: draw at the peak rate, keep each arrival with probability rate(t) ÷ peak."""
    peak_per_s = process.mean_per_s * (1 + process.amplitude)
    for at_s in _renewals(lambda: random.expovariate(peak_per_s)):
        wave = math.sin(2 * math.pi * at_s / process.period_s)
        if random.random() * (1 + process.amplitude) < 1 + process.amplitude * wave:
            yield at_s
