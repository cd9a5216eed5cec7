"""All policies on the same calls: one row per policy, intervals over seeds, and how far the targets are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cluster.config.schema import SchedulerConfig
from cluster.placement.adapters import PlacementSettings
from cluster.placement.evaluation.policies.policy import PlacementPolicy
from cluster.placement.evaluation.policies.prefer_loaded import PreferLoaded
from cluster.placement.evaluation.policies.ray_lru import RayLru
from cluster.placement.evaluation.policies.rendezvous import Rendezvous
from cluster.placement.evaluation.policies.sprat import Oracle, Sprat
from cluster.placement.evaluation.replica import SimulatedReplica
from cluster.placement.evaluation.scenario import Scenario
from cluster.placement.evaluation.simulation import Run, Simulation

STARVED_S = 10.0
"""An adapter is starved if one of its calls waited longer than this for its first token, or was never
served."""

CONFIDENCE = 0.95

Replicas = Sequence[SimulatedReplica]


def _sprat(
    kind: type[Sprat], settings: PlacementSettings
) -> Callable[[Scenario, int], Callable[[Replicas], PlacementPolicy]]:
    def made(scenario: Scenario, _seed: int) -> Callable[[Replicas], PlacementPolicy]:
        return lambda replicas: kind(
            replicas,
            adapters=scenario.adapters,
            service_s=scenario.service_s,
            load_price_s=SchedulerConfig().adapter_load_s,
            settings=settings,
        )

    return made


POLICIES: dict[str, Callable[[Scenario, int], Callable[[Replicas], PlacementPolicy]]] = {
    "sprat": _sprat(Sprat, PlacementSettings()),
    "ray_lru": lambda _, seed: lambda replicas: RayLru(replicas, seed),
    "prefer_loaded": lambda _scenario, _seed: PreferLoaded,
    "rendezvous": lambda _scenario, _seed: Rendezvous,
    "oracle": _sprat(Oracle, PlacementSettings(keep=0.0)),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of the counted calls. TTFT from arrival to first token. A call is cold if it waited for the
    load of its adapter, and a hit otherwise. `slot_imbalance`: calls of the busiest replica over the mean.
    `copies`: places taken per distinct adapter, when the last call came."""

    policy: str
    loads_per_1000: float
    cold_ttft_p99_ms: float
    starved: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    hit_share: float
    cold_share: float
    slot_imbalance: float
    copies: float


def simulate(policy: str, scenario: Scenario, seed: int) -> Row:
    """Raises KeyError for a policy that is not of `POLICIES`."""
    run = Simulation(scenario, seed, POLICIES[policy](scenario, seed)).run()
    return _row(policy, run, scenario)


def _row(policy: str, run: Run, scenario: Scenario) -> Row:
    calls = run.calls
    ttft_s = (
        np.array([each.started_s - each.arrived_s if each.started_s >= 0 else np.inf for each in calls])
        + scenario.prefill_s
    )
    cold = np.array([each.cold for each in calls])
    starved = {each.adapter for each, waited_s in zip(calls, ttft_s, strict=True) if waited_s > STARVED_S}
    cold_share = float(cold.mean())
    return Row(
        policy=policy,
        loads_per_1000=round(1000 * run.loads / len(calls), 1),
        cold_ttft_p99_ms=_percentile_ms(ttft_s[cold], 99),
        starved=len(starved),
        ttft_p50_ms=_percentile_ms(ttft_s, 50),
        ttft_p99_ms=_percentile_ms(ttft_s, 99),
        hit_share=round(1 - cold_share, 4),
        cold_share=round(cold_share, 4),
        slot_imbalance=round(max(run.served) / (sum(run.served) / len(run.served)), 3),
        copies=round(run.copies, 3),
    )


def _percentile_ms(values_s: NDArray[np.float64], percent: int) -> float:
    """A value that occurred; 0 of none."""
    if not values_s.size:
        return 0.0
    return round(float(np.percentile(values_s, percent, method="inverted_cdf")) * 1000, 1)


def compare(
    scenario: Scenario, seed: int, repeats: int, policies: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """`rows` are of `seed` alone. `over_seeds`: each policy's figures over `repeats` seeds from `seed` on,
    and its loads and p99 cold TTFT as ratios to others on the same calls: mean and 95 % interval (Student's
    t)."""
    per_seed: list[dict[str, Row]] = []
    for each in range(seed, seed + repeats):
        per_seed.append({})
        for name in policies:
            row = per_seed[-1][name] = simulate(name, scenario, each)
            say(f"seed {each} {name}: {row.loads_per_1000} loads per 1,000 calls, simulated")
    return {
        "simulated": True,
        "scenario": asdict(scenario),
        "calls_per_s": round(scenario.calls_per_s, 2),
        "starved_limit_s": STARVED_S,
        "seed": seed,
        "seeds": [seed + number for number in range(repeats)],
        "rows": [asdict(row) for row in per_seed[0].values()],
        "over_seeds": {name: _over_seeds(name, per_seed) for name in policies},
    }


def _over_seeds(name: str, per_seed: Sequence[dict[str, Row]]) -> dict[str, Any]:
    rows = [rows[name] for rows in per_seed]
    figures = {
        "loads_per_1000": interval([row.loads_per_1000 for row in rows]),
        "cold_ttft_p99_ms": interval([row.cold_ttft_p99_ms for row in rows]),
        "starved": max(row.starved for row in rows),
    }
    for other in ("oracle", "ray_lru"):
        if other in per_seed[0]:
            figures |= {
                f"{what}_vs_{other}": interval(
                    [getattr(rows[name], field) / getattr(rows[other], field) for rows in per_seed]
                )
                for what, field in (("loads", "loads_per_1000"), ("cold_ttft_p99", "cold_ttft_p99_ms"))
                if all(getattr(rows[other], field) > 0 for rows in per_seed)
            }
    return figures


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and the bounds of its interval, which one value alone does not have."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": round(mean, 4), "low": None, "high": None}
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(stats.sem(values))
    return {"mean": round(mean, 4), "low": round(mean - reach, 4), "high": round(mean + reach, 4)}
