"""Cost-quality curves of a router between two models (RouteLLM, arXiv 2406.18665).

A score per prompt says how much the strong model is worth there. For every share k of calls that goes to
the strong model, highest scores first, PGR(k) is the part of the gap between the two models' accuracies
that is recovered: 0 is the weak model alone, 1 the strong one; it can pass 1, as the weak model alone is
right sometimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Curve:
    """`pgr[k]` for k = 0 … n calls on the strong model."""

    pgr: Floats

    @property
    def apgr(self) -> float:
        """Mean PGR over all shares: the area by trapezes. 0.5 is a random router's."""
        return float(np.mean((self.pgr[1:] + self.pgr[:-1]) / 2))

    def cpt(self, target: float) -> float | None:
        """The smallest share of calls on the strong model with PGR >= target; None if no share has it."""
        reached = np.flatnonzero(self.pgr >= target)
        return float(reached[0] / (len(self.pgr) - 1)) if len(reached) else None


def curve(scores: Floats, weak: NDArray[np.bool_], strong: NDArray[np.bool_], seed: int) -> Curve:
    """Of n prompts (each array has shape (n,)); equal scores are ordered at random. ValueError where both
    models are equally good: there is no gap to recover."""
    gap = int(strong.sum()) - int(weak.sum())
    if gap == 0:
        raise ValueError("both models are right equally often: there is no gap that a router could recover")
    ties = np.random.default_rng(seed).random(len(scores))
    order = np.lexsort((ties, -scores))
    gained = np.cumsum(strong[order].astype(np.int64) - weak[order].astype(np.int64))
    return Curve(np.concatenate(([0], gained)) / gap)


def apgr_interval(
    scores: Floats, weak: NDArray[np.bool_], strong: NDArray[np.bool_], *, seed: int, samples: int = 200
) -> tuple[float, float]:
    """95 % percentile bootstrap over prompts."""
    generator = np.random.default_rng(seed)
    found = []
    for sample in range(samples):
        rows = generator.integers(0, len(scores), len(scores))
        if strong[rows].sum() != weak[rows].sum():
            found.append(curve(scores[rows], weak[rows], strong[rows], sample).apgr)
    return percentile_interval(found)


def percentile_interval(samples: Floats | Sequence[float]) -> tuple[float, float]:
    """Where CONFIDENCE of a bootstrap's samples are. Those that have no value (NaN) do not count."""
    low, high = np.nanquantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def expected_calibration_error(probabilities: Floats, outcomes: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean distance between what was predicted and what came, over bins of equal width (arXiv 1706.04599)."""
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    error = 0.0
    for each in range(bins):
        inside = which == each
        if inside.any():
            distance = abs(float(probabilities[inside].mean()) - float(outcomes[inside].mean()))
            error += distance * float(inside.mean())
    return error
