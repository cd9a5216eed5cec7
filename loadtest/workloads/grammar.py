"""Workload strings: parsed to a value that prints back as the same string."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.bad_input import BadInput


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: exponential gaps."""

    rate_per_s: float

    def __str__(self) -> str:
        return f"poisson:{self.rate_per_s:g}"


@dataclass(frozen=True, slots=True)
class Gamma:
    """Bursts: gamma-distributed gaps, `cv` = standard deviation ÷ mean of the gaps (1 is Poisson)."""

    rate_per_s: float
    cv: float

    def __str__(self) -> str:
        return f"gamma:{self.rate_per_s:g},{self.cv:g}"


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Poisson arrivals whose rate is mean · (1 + amplitude · sin(2π t / period))."""

    mean_per_s: float
    period_s: float
    amplitude: float

    def __str__(self) -> str:
        return f"diurnal:{self.mean_per_s:g},{self.period_s:g},{self.amplitude:g}"


@dataclass(frozen=True, slots=True)
class Closed:
    """So many users, each of whom asks again when it has its answer."""

    users: int

    def __str__(self) -> str:
        return f"closed:{self.users}"


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded arrivals and lengths. `source` is a known name or `trace:FILE`."""

    source: str

    def __str__(self) -> str:
        return self.source


Workload = Poisson | Gamma | Diurnal | Closed | Trace

TRACES = ("azure-code", "mooncake")
FORMS = (
    "azure-code, mooncake, trace:FILE, poisson:RATE, gamma:RATE,CV, diurnal:MEAN,PERIOD_S,AMPLITUDE, "
    "closed:USERS"
)


def parse_workload(text: str) -> Workload:
    if text in TRACES:
        return Trace(text)
    kind, _, rest = text.partition(":")
    if kind == "trace" and rest:
        return Trace(text)
    parsers: dict[str, Callable[[list[float]], Workload]] = {
        "poisson": lambda values: Poisson(*values),
        "gamma": lambda values: Gamma(*values),
        "diurnal": lambda values: Diurnal(*values),
        "closed": lambda values: Closed(_whole(*values)),
    }
    if kind not in parsers:
        raise BadInput(f"--workload {text!r} is not known; use one of {FORMS}")
    try:
        workload = parsers[kind]([float(part) for part in rest.split(",")])
    except (TypeError, ValueError) as error:
        raise BadInput(f"--workload {text!r}: use one of {FORMS}") from error
    _check(workload, text)
    return workload


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _check(workload: Workload, text: str) -> None:
    match workload:
        case Poisson(rate) if 0 < rate < float("inf"):
            return
        case Gamma(rate, cv) if 0 < rate < float("inf") and 0 < cv < float("inf"):
            return
        case Diurnal(mean, period, amplitude) if (
            0 < mean < float("inf") and 0 < period < float("inf") and 0 <= amplitude <= 1
        ):
            return
        case Closed(users) if users > 0:
            return
    raise BadInput(f"--workload {text!r}: rates, CV, period and users are above 0, the amplitude is 0 to 1")
