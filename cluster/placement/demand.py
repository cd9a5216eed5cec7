"""How much each adapter is asked for: counts of calls → a smoothed estimate. Pure, the clock is an argument.

Two things are forgotten at two paces. An adapter's **share** of the calls is forgotten by calls: after
`remembered_calls` further ones a call counts 1/e. So a quiet night changes no share, and a busy hour does not
look at its last seconds only. The **rate** of all calls is forgotten by time. Their product is what the
adapter is asked for now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

FORGOTTEN_SHARE = 1e-3
"""Of one call: an adapter whose weight has faded below this is dropped from the books."""

NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Uses:
    """Calls with an adapter, and how long they ran in all, since the last look."""

    calls: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Forgetting:
    """`remembered_calls`: of shares; some tens per place for adapters (`remembered_calls_for`). `rate_s`: of
    the rate of all calls."""

    remembered_calls: float
    rate_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.remembered_calls > 0 and self.rate_s > 0):
            raise ValueError(f"what is forgotten at once cannot be estimated: {self}")


CALLS_PER_PLACE = 24
"""Popularity that changes slowly wants more, fast change less; `sprat bench placement` shows how flat it
is."""


def remembered_calls_for(places: int) -> float:
    """Enough calls to tell the least wanted adapter that has a place from the most wanted that has none:
    under Zipf's law each is asked for about once per `places` x ln(adapters) calls."""
    return float(max(1, places) * CALLS_PER_PLACE)


@dataclass(frozen=True, slots=True)
class AdapterDemand:
    """`calls_per_s` of one adapter; `service_s`, how long one of them runs."""

    calls_per_s: float = 0.0
    service_s: float = 0.0

    @property
    def load(self) -> float:
        """Calls that run at once on average (Erlang)."""
        return self.calls_per_s * self.service_s


NO_DEMAND = AdapterDemand()


@dataclass(frozen=True, slots=True)
class Demand:
    """The books. Weights are calls, faded; `seconds` fade as the rate does, so that calls / seconds is a rate
    from the first look on."""

    calls: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    busy_s: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    recent_calls: float = 0.0
    recent_seconds: float = 0.0
    at_ms: int | None = None

    @property
    def calls_per_s(self) -> float:
        """Of all adapters."""
        return self.recent_calls / self.recent_seconds if self.recent_seconds > 0 else 0.0

    def per_adapter(self) -> dict[str, AdapterDemand]:
        """Of each adapter that is not forgotten."""
        weight = sum(self.calls.values())
        if weight <= 0:
            return {}
        per_weight = self.calls_per_s / weight
        return {
            adapter_id: AdapterDemand(calls * per_weight, self.busy_s[adapter_id] / calls)
            for adapter_id, calls in self.calls.items()
        }


def observe(demand: Demand, uses: Mapping[str, Uses], now_ms: int, forgetting: Forgetting) -> Demand:
    """The books after a look at `now_ms`. The first look only starts the clock where it counts no calls.
    Raises ValueError when the clock went back."""
    elapsed_s = 0.0 if demand.at_ms is None else (now_ms - demand.at_ms) / 1000
    if elapsed_s < 0:
        raise ValueError(f"time does not go back: {demand.at_ms} ms, then {now_ms} ms")
    new_calls = sum(each.calls for each in uses.values())
    kept = math.exp(-new_calls / forgetting.remembered_calls)
    calls = {
        adapter_id: weight * kept
        for adapter_id, weight in demand.calls.items()
        if weight * kept >= FORGOTTEN_SHARE or adapter_id in uses
    }
    busy_s = {adapter_id: demand.busy_s[adapter_id] * kept for adapter_id in calls}
    for adapter_id, each in uses.items():
        if each.calls > 0:
            calls[adapter_id] = calls.get(adapter_id, 0.0) + each.calls
            busy_s[adapter_id] = busy_s.get(adapter_id, 0.0) + each.busy_s
    rate_kept = math.exp(-elapsed_s / forgetting.rate_s)
    return Demand(
        calls,
        busy_s,
        demand.recent_calls * rate_kept + new_calls,
        demand.recent_seconds * rate_kept + elapsed_s,
        now_ms,
    )
