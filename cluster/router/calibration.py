"""From a score to a probability that can be taken at its word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_SHARE = 0.005
"""No prompt is surely right or wrong."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Score → share of prompts with that score that were answered correctly: a rising step function, read by
    interpolation between the middles of its steps (arXiv 1207.1403)."""

    scores: Floats
    shares: Floats

    @classmethod
    def of(cls, scores: Floats, right: NDArray[np.bool_]) -> Calibration:
        from scipy.optimize import isotonic_regression  # half a second; whoever only reads one needs none

        order = np.argsort(scores, kind="stable")
        fitted = isotonic_regression(right[order].astype(float))
        edges = fitted.blocks
        middles = [float(scores[order][edges[i] : edges[i + 1]].mean()) for i in range(len(edges) - 1)]
        shares = fitted.x[edges[:-1]]
        return cls(np.array(middles), np.clip(shares, LEAST_SHARE, 1 - LEAST_SHARE))

    def __call__(self, scores: Floats) -> Floats:
        return np.interp(scores, self.scores, self.shares)
