"""`--rate`: how fast arrivals come, without changing their shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.bad_input import BadInput
from loadtest.workloads.grammar import Closed, Diurnal, Gamma, Poisson, Workload
from loadtest.workloads.planned_call import TraceRow


@dataclass(frozen=True, slots=True)
class Rate:
    """`0.5x` multiplies the rate, `3/s` sets its mean."""

    value: float
    is_factor: bool

    def __str__(self) -> str:
        return f"{self.value:g}{'x' if self.is_factor else '/s'}"


AS_IT_IS = Rate(1.0, is_factor=True)


def parse_rate(text: str) -> Rate:
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(x|/s)", text.strip())
    if not found or float(found[1]) <= 0:
        raise BadInput(f"--rate {text!r}: use a factor such as 0.5x or a mean rate such as 3/s, above 0")
    return Rate(float(found[1]), is_factor=found[2] == "x")


def scaled_rows(rows: Sequence[TraceRow], rate: Rate) -> list[TraceRow]:
    """Every gap divided by the same factor. The mean rate of n arrivals is n - 1 gaps over their span."""
    span_s = rows[-1].at_s - rows[0].at_s
    if not rate.is_factor and span_s <= 0:
        raise BadInput(f"--rate {rate}: the trace spans no time, so it has no mean rate; use a factor")
    factor = rate.value if rate.is_factor else rate.value * span_s / (len(rows) - 1)
    return [replace(row, at_s=row.at_s / factor) for row in rows]


def scaled_process(workload: Workload, rate: Rate) -> Workload:
    def scaled(rate_per_s: float) -> float:
        return rate_per_s * rate.value if rate.is_factor else rate.value

    match workload:
        case Poisson(mean):
            return Poisson(scaled(mean))
        case Gamma(mean, cv):
            return Gamma(scaled(mean), cv)
        case Diurnal(mean, period, amplitude):
            return Diurnal(scaled(mean), period, amplitude)
        case Closed() if rate != AS_IT_IS:
            raise BadInput(f"--rate {rate}: in a closed loop the answers set the rate; change closed:USERS")
    return workload
