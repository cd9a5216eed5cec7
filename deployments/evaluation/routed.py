"""What a policy would have given on kept answers, and how that compares with always asking one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.router.evaluation.curves import percentile_interval
from deployments.evaluation.outcomes import Outcome

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SAMPLES = 4000
"""Of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Routed:
    """Per case, in the same order for every policy: was the answer right, what did it cost (micro-USD), how
    long did it take (ms), did the large model give it."""

    right: Flags
    cost_micro_usd: Floats
    latency_ms: Floats
    on_large: Flags

    def summary(self) -> dict[str, Any]:
        """`per_right_usd` is None where nothing was right."""
        p50, p95 = np.percentile(self.latency_ms, [50, 95], method="inverted_cdf")
        rights = int(self.right.sum())
        return {
            "quality": round(float(self.right.mean()), 4),
            "per_1000_usd": round(float(self.cost_micro_usd.mean()) / 1000, 4),
            "per_right_usd": round(float(self.cost_micro_usd.sum()) / rights / 1e6, 6) if rights else None,
            "latency_ms": {
                "mean": round(float(self.latency_ms.mean())),
                "p50": round(float(p50)),
                "p95": round(float(p95)),
            },
            "share_on_large": round(float(self.on_large.mean()), 4),
        }


@dataclass(frozen=True, slots=True)
class KeptPairs:
    """The answers of both models to the same cases, in the same order."""

    small: tuple[Outcome, ...]
    large: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.small)

    @property
    def right(self) -> Flags:
        """Shape (cases, 2): small, large."""
        return np.array([[each.right for each in pair] for pair in zip(self.small, self.large, strict=True)])

    @property
    def only_large_is_right(self) -> Flags:
        """Where going up is worth it, to whom knows everything."""
        small, large = self.right.T
        return np.asarray(large & ~small)

    def routed(self, up: Flags, *, drafted: Flags | bool = False) -> Routed:
        """`up`: which calls the large model answers. `drafted`: where the small one was asked first, to be
        paid and waited for there too."""
        small_right, large_right = self.right.T
        small_cost, small_ms = _cost_and_latency(self.small)
        large_cost, large_ms = _cost_and_latency(self.large)
        return Routed(
            right=np.where(up, large_right, small_right),
            cost_micro_usd=np.where(up, large_cost, 0) + np.where(~up | drafted, small_cost, 0),
            latency_ms=np.where(up, large_ms, 0) + np.where(~up | drafted, small_ms, 0),
            on_large=up,
        )


def differences(routed: Routed, reference: Routed, *, seed: int) -> dict[str, Any]:
    """Paired: case by case, with 95 % percentile bootstraps over cases. Cost and latency are shares of the
    reference's (0.4 less: -0.4), quality is in points of a whole (0.02: two per cent of the calls)."""
    rows = np.random.default_rng(seed).integers(0, len(routed.right), (SAMPLES, len(routed.right)))
    found = {
        "quality": (_mean(routed.right, rows) - _mean(reference.right, rows)),
        "cost": _mean(routed.cost_micro_usd, rows) / _mean(reference.cost_micro_usd, rows) - 1,
        "latency": _mean(routed.latency_ms, rows) / _mean(reference.latency_ms, rows) - 1,
    }
    point = {
        "quality": float(routed.right.mean() - reference.right.mean()),
        "cost": float(routed.cost_micro_usd.mean() / reference.cost_micro_usd.mean() - 1),
        "latency": float(routed.latency_ms.mean() / reference.latency_ms.mean() - 1),
    }
    return {name: {"difference": round(point[name], 4), "ci": _interval(found[name])} for name in point}


def _mean(values: NDArray[Any], rows: NDArray[np.int64]) -> Floats:
    """Of each sample."""
    found: Floats = values.astype(np.float64)[rows].mean(axis=1)
    return found


def _interval(values: Floats) -> list[float]:
    return [round(bound, 4) for bound in percentile_interval(values)]


def _cost_and_latency(outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
    return (
        np.array([each.cost_micro_usd for each in outcomes], dtype=np.float64),
        np.array([each.latency_ms for each in outcomes], dtype=np.float64),
    )
