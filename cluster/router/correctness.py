"""How likely each model answers a prompt correctly, from labels of earlier prompts: a ridge regression per
model on hashed n-grams and length, calibrated.

Linear on purpose. It reads a prompt in a quarter of a millisecond, is trained in seconds, gives the same
for the same data, and on RouteLLM's labels is better than sentence embeddings (DECISIONS 2026-11-22). The
length stands beside the n-grams because it holds where no n-gram was seen before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

from cluster.router.folds import part_of_rows
from cluster.router.ngrams import SIZE, Counts, counts_of, inverse_document_frequencies, weighted

Floats = NDArray[np.float64]

RIDGES = (5.0, 10.0, 20.0, 40.0)
"""One of them is chosen by the squared error on prompts that were left out."""

FOLDS = 4
STEPS = 60
"""Of the solver; the ranking does not change after half of them."""

LENGTH = SIZE
FEATURES = SIZE + 1
TYPICAL_LOG_LENGTH = 6.0
"""So that the length of a usual prompt (400 characters) is about 0."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Score → share of prompts with that score that were answered correctly: a rising step function, read by
    interpolation between the middles of its steps (arXiv 1207.1403)."""

    scores: Floats
    shares: Floats

    @classmethod
    def of(cls, scores: Floats, right: NDArray[np.bool_]) -> Calibration:
        order = np.argsort(scores, kind="stable")
        fitted = isotonic_regression(right[order].astype(float))
        edges = fitted.blocks
        middles = [float(scores[order][edges[i] : edges[i + 1]].mean()) for i in range(len(edges) - 1)]
        shares = fitted.x[edges[:-1]]
        return cls(np.array(middles), np.clip(shares, 0.005, 0.995))

    def __call__(self, scores: Floats) -> Floats:
        return np.interp(scores, self.scores, self.shares)


@dataclass(frozen=True, slots=True)
class CorrectnessModel:
    """`weights` has shape (FEATURES, models). The order of `models` is that of every result."""

    models: tuple[str, ...]
    idf: Floats
    weights: Floats
    means: Floats
    calibrations: tuple[Calibration, ...]
    ridge: float

    def raw(self, prompts: Sequence[str]) -> Floats:
        """Uncalibrated, shape (prompts, models): finer than probabilities, so better for ranking."""
        found = np.empty((len(prompts), len(self.models)))
        for row, prompt in enumerate(prompts):
            numbers, values = _features(counts_of(prompt), prompt, self.idf)
            found[row] = values @ self.weights[numbers] + self.means
        return found

    def probabilities(self, prompts: Sequence[str]) -> Floats:
        """P(the model answers correctly), shape (prompts, models)."""
        return self.calibrated(self.raw(prompts))

    def calibrated(self, raw: Floats) -> Floats:
        """What `raw` gave, as probabilities."""
        return np.column_stack([each(raw[:, model]) for model, each in enumerate(self.calibrations)])

    @classmethod
    def fit(
        cls,
        models: Sequence[str],
        prompts: Sequence[str],
        right: NDArray[np.bool_],
        *,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> CorrectnessModel:
        """`right` has shape (prompts, models). What the data must decide, ridge and calibration, is decided
        on prompts that were left out: at random or, with `groups`, whole groups of them, as is right for a
        model that is to be used on other topics than those of its labels."""
        counts = [counts_of(prompt) for prompt in prompts]
        if groups is not None and len(set(groups)) < FOLDS:
            groups = None
        parts = part_of_rows(len(prompts), FOLDS, seed=seed, groups=groups)
        held_out = {ridge: np.empty(right.shape) for ridge in RIDGES}
        for part in range(FOLDS):
            inside, outside = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
            idf = inverse_document_frequencies([counts[row] for row in inside])
            matrix = _matrix([_features(counts[row], prompts[row], idf) for row in inside])
            unseen = _matrix([_features(counts[row], prompts[row], idf) for row in outside])
            means = right[inside].mean(axis=0)
            for ridge, predicted in held_out.items():
                predicted[outside] = unseen @ _solve(matrix, right[inside] - means, ridge) + means
        best = min(RIDGES, key=lambda ridge: float(((held_out[ridge] - right) ** 2).mean()))
        idf = inverse_document_frequencies(counts)
        matrix = _matrix([_features(each, prompt, idf) for each, prompt in zip(counts, prompts, strict=True)])
        means = right.mean(axis=0)
        calibrations = tuple(
            Calibration.of(held_out[best][:, model], right[:, model]) for model in range(len(models))
        )
        return cls(tuple(models), idf, _solve(matrix, right - means, best), means, calibrations, best)


def _features(counts: Counts, prompt: str, idf: Floats) -> Counts:
    numbers, values = weighted(counts, idf)
    return np.append(numbers, LENGTH), np.append(values, log(1 + len(prompt)) - TYPICAL_LOG_LENGTH)


def _solve(matrix: csr_array, targets: Floats, ridge: float) -> Floats:
    """Shape (FEATURES, models)."""
    return np.column_stack(
        [lsqr(matrix, target, damp=float(np.sqrt(ridge)), iter_lim=STEPS)[0] for target in targets.T]
    )


def _matrix(rows: Sequence[Counts]) -> csr_array:
    starts = np.concatenate(([0], np.cumsum([len(numbers) for numbers, _ in rows])))
    numbers = np.concatenate([numbers for numbers, _ in rows])
    values = np.concatenate([values for _, values in rows])
    return csr_array((values, numbers, starts), shape=(len(rows), FEATURES))
