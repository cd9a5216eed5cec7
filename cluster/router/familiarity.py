"""Whether a prompt is of the kind that the labels are of.

Labels of one benchmark share a form: options and `Answer:`, the words of a template. A prompt without most
of what nearly all labelled prompts have is of another kind, whatever its topic is, and what n-grams say of it
was never tested. How much of the form a prompt of the same kind may lack is known from prompts that were
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.router.ngrams import SIZE, Counts

USUAL_SHARE = 0.9
"""A feature that more than this share of the labelled prompts has belongs to their form. Of fewer, common
words of the language are most."""

LEAST_LIKE = 0.05
"""Share of left-out prompts that may look less than wholly familiar."""


@dataclass(frozen=True, slots=True)
class Familiarity:
    """`usual` are the numbers of the form's features, `weights` how many of the labelled prompts have each,
    with a sum of 1. A prompt with `enough` of them is as familiar as the labelled ones, one with half of that
    not at all. 0: the labels have no form in common."""

    usual: NDArray[np.int32]
    weights: NDArray[np.float32]
    enough: float = 0.0

    @classmethod
    def of(cls, prompts: Sequence[Counts], enough: float = 0.0) -> Familiarity:
        found = np.zeros(SIZE, dtype=np.int64)
        for numbers, _ in prompts:
            found[numbers] += 1
        usual = np.flatnonzero(found > USUAL_SHARE * len(prompts)).astype(np.int32)
        return cls(usual, (found[usual] / max(found[usual].sum(), 1)).astype(np.float32), enough)

    def likeness(self, numbers: NDArray[np.int32]) -> float:
        """Share of the form that a prompt with these features has, 0 to 1."""
        if not len(numbers) or not len(self.usual):
            return 0.0
        at = np.minimum(numbers.searchsorted(self.usual), len(numbers) - 1)
        return float(self.weights[numbers[at] == self.usual].sum())

    def __call__(self, numbers: NDArray[np.int32]) -> float:
        """0 for a prompt of another kind, 1 for one of the same."""
        if not self.enough:
            return 1.0
        return min(max(2 * self.likeness(numbers) / self.enough - 1, 0.0), 1.0)


def enough_of(likenesses: NDArray[np.float64]) -> float:
    """`likenesses` of prompts that were left out."""
    return float(np.quantile(likenesses, LEAST_LIKE))
