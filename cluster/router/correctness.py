"""How likely each model answers a prompt correctly, from labels of earlier prompts.

Two views of a prompt are weighed against each other: a ridge regression per model on hashed n-grams and
length, and what is known of the nearest labelled prompts. The weights are those that would have told the
models apart best on prompts that were left out (stacking, Breiman 1996); what comes out is calibrated on
the same ones. The length stands beside the n-grams because it holds where no n-gram was seen before. As far
as a prompt is of another kind than the labelled ones, how hard it looks takes the place of both views.

It reads a prompt in less than a millisecond, is trained in seconds to minutes, gives the same for the same
data, and on RouteLLM's labels is better than sentence embeddings (DECISIONS 2026-11-22).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

from cluster.errors import ConfigError
from cluster.router.array_file import ArrayFile, read_array_file, write_array_file
from cluster.router.calibration import Calibration
from cluster.router.difficulty import Difficulty
from cluster.router.familiarity import Familiarity, enough_of
from cluster.router.folds import part_of_rows
from cluster.router.neighbours import Neighbours
from cluster.router.ngrams import SIZE, Counts, counts_of, inverse_document_frequencies, weighted

Floats = NDArray[np.float64]

KIND, VERSION = "correctness", 2
MADE_BY = "sprat router train"

RIDGES = (20.0, 80.0)

FOLDS = 4
FEWEST = 20
"""Labelled prompts, to leave a quarter of them out."""
STEPS = 30
"""Of the solver; the ranking does not change after them."""

LENGTH = SIZE
FEATURES = SIZE + 1
TYPICAL_LOG_LENGTH = 6.0
"""So that the length of a usual prompt (400 characters) is about 0."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the training prompts looked like while they were left out, both of shape (prompts, models): what
    a threshold for a budget is set by."""

    probabilities: Floats
    right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CorrectnessModel:
    """`weights` has shape (FEATURES, models). The order of `models` is that of every result."""

    models: tuple[str, ...]
    idf: NDArray[np.float32]
    weights: NDArray[np.float32]
    means: Floats
    neighbours: Neighbours
    share_of_neighbours: float
    familiarity: Familiarity
    difficulty: Difficulty
    calibrations: tuple[Calibration, ...]
    held_out: HeldOut

    def raw(self, prompts: Sequence[str]) -> Floats:
        """Uncalibrated, shape (prompts, models): finer than probabilities, so better for ranking."""
        return np.array([self._raw(prompt) for prompt in prompts]).reshape(-1, len(self.models))

    def _raw(self, prompt: str) -> Floats:
        counts = counts_of(prompt)
        familiar = self.familiarity(counts[0])
        if not familiar:
            return self.difficulty.probabilities(prompt)
        numbers, values = weighted(counts, self.idf)
        near = self.neighbours.outcome_of_one(numbers, values)
        linear = values @ self.weights[numbers] + _length(prompt) * self.weights[LENGTH]
        found: Floats = linear + self.share_of_neighbours * near + self.means
        if familiar < 1:
            found = familiar * found + (1 - familiar) * self.difficulty.probabilities(prompt)
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
        """`right` has shape (prompts, models). What the data must decide, weights of the views and
        calibration, is decided on prompts that were left out: at random or, with `groups`, whole groups of
        them, as is right for a model that is to be used on other topics than those of its labels. Raises
        ConfigError for too few prompts."""
        if len(prompts) < FEWEST:
            raise ConfigError(f"{len(prompts)} labelled prompts are too few to learn from; give {FEWEST}.")
        counts = [counts_of(prompt) for prompt in prompts]
        if groups is not None and len(set(groups)) < FOLDS:
            groups = None
        parts = part_of_rows(len(prompts), FOLDS, seed=seed, groups=groups)
        views = np.empty((len(RIDGES) + 1, *right.shape))  # of each prompt while it was left out
        centres = np.empty(right.shape)
        likenesses = np.empty(len(prompts))
        for part in range(FOLDS):
            inside, outside = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
            idf = inverse_document_frequencies([counts[row] for row in inside])
            seen = _matrix([_features(counts[row], prompts[row], idf) for row in inside])
            unseen = _matrix([_features(counts[row], prompts[row], idf) for row in outside])
            form = Familiarity.of([counts[row] for row in inside])
            likenesses[outside] = [form.likeness(counts[row][0]) for row in outside]
            centres[outside] = right[inside].mean(axis=0)
            targets = right[inside] - right[inside].mean(axis=0)
            for number, ridge in enumerate(RIDGES):
                views[number, outside] = unseen @ _solve(seen, targets, ridge)
            near = Neighbours.of(seen, targets.astype(np.float32), left_out=LENGTH)
            views[-1, outside] = near.outcome(unseen.astype(np.float32))
        shares = _stacked(views, right - centres)
        held_out = np.tensordot(shares, views, 1) + centres

        idf = inverse_document_frequencies(counts)
        matrix = _matrix([_features(each, prompt, idf) for each, prompt in zip(counts, prompts, strict=True)])
        means = right.mean(axis=0)
        linear = np.zeros((FEATURES, len(models)))
        for share, ridge in zip(shares, RIDGES, strict=False):
            if share:
                linear += share * _solve(matrix, right - means, ridge)
        calibrations = tuple(
            Calibration.of(held_out[:, model], right[:, model]) for model in range(len(models))
        )
        probabilities = np.column_stack([each(held_out[:, model]) for model, each in enumerate(calibrations)])
        return cls(
            tuple(models),
            idf,
            linear.astype(np.float32),
            means,
            Neighbours.of(matrix, (right - means).astype(np.float32), left_out=LENGTH),
            float(shares[-1]),
            Familiarity.of(counts, enough_of(likenesses)),
            Difficulty.fit(prompts, right, groups),
            calibrations,
            HeldOut(probabilities, right),
        )

    def save(self, path: Path) -> None:
        """Raises ConfigError."""
        index = self.neighbours.index
        arrays = {
            "idf": self.idf,
            "weights": self.weights,
            "means": self.means,
            "index_data": index.data,
            "index_rows": index.indices.astype(np.int32),
            "index_starts": index.indptr.astype(np.int32),
            "outcomes": self.neighbours.outcomes,
            "usual": self.familiarity.usual,
            "usual_weights": self.familiarity.weights,
            "familiar_enough": np.array(self.familiarity.enough),
            "difficulty_slopes": self.difficulty.slopes,
            "difficulty_centre": np.array(self.difficulty.centre),
            "abilities": self.difficulty.abilities,
            "held_out_probabilities": self.held_out.probabilities,
            "held_out_right": self.held_out.right,
        }
        for model, calibration in enumerate(self.calibrations):
            arrays[f"calibration_scores_{model}"] = calibration.scores
            arrays[f"calibration_shares_{model}"] = calibration.shares
        header = {"models": list(self.models), "share_of_neighbours": self.share_of_neighbours}
        write_array_file(path, ArrayFile(header, arrays), kind=KIND, version=VERSION)

    @classmethod
    def load(cls, path: Path) -> CorrectnessModel:
        """Raises ConfigError."""
        header, arrays = read_array_file(path, kind=KIND, version=VERSION, made_by=MADE_BY)
        try:
            models = tuple(map(str, header["models"]))
            rows = len(arrays["outcomes"])
            index = csr_array(
                (arrays["index_data"], arrays["index_rows"], arrays["index_starts"]),
                shape=(FEATURES, rows),
            )
            made = cls(
                models,
                arrays["idf"],
                arrays["weights"],
                arrays["means"],
                Neighbours(index, arrays["outcomes"]),
                float(header["share_of_neighbours"]),
                Familiarity(arrays["usual"], arrays["usual_weights"], float(arrays["familiar_enough"])),
                Difficulty(
                    float(arrays["difficulty_centre"]), arrays["difficulty_slopes"], arrays["abilities"]
                ),
                tuple(
                    Calibration(arrays[f"calibration_scores_{model}"], arrays[f"calibration_shares_{model}"])
                    for model in range(len(models))
                ),
                HeldOut(arrays["held_out_probabilities"], arrays["held_out_right"]),
            )
            index.check_format(full_check=True)
            shapes = (made.idf.shape, made.weights.shape, made.means.shape, made.neighbours.outcomes.shape)
            if shapes != ((SIZE,), (FEATURES, len(models)), (len(models),), (rows, len(models))):
                raise ValueError(f"shapes {shapes}")  # noqa: TRY301 (one message for all damage)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: is damaged ({error}); make it again with `{MADE_BY}`.") from error
        return made


def _stacked(views: Floats, outcomes: Floats) -> Floats:
    """Weights >= 0 of the views, by the squared error of differences between models, which is all that a
    choice between them needs; of the outcome itself where there is one model. `views` has shape
    (views, prompts, models)."""
    if outcomes.shape[1] > 1:
        views = views - views.mean(axis=2, keepdims=True)
        outcomes = outcomes - outcomes.mean(axis=1, keepdims=True)
    shares: Floats = nnls(views.reshape(len(views), -1).T, outcomes.ravel())[0]
    return shares


def _features(counts: Counts, prompt: str, idf: NDArray[np.floating]) -> Counts:
    numbers, values = weighted(counts, idf)
    return np.append(numbers, np.int32(LENGTH)), np.append(values, np.float32(_length(prompt)))


def _length(prompt: str) -> float:
    return log(1 + len(prompt)) - TYPICAL_LOG_LENGTH


def _solve(matrix: csr_array, targets: Floats, ridge: float) -> Floats:
    """Shape (FEATURES, models)."""
    used, columns = np.unique(matrix.indices, return_inverse=True)
    compact = csr_array((matrix.data, columns, matrix.indptr), shape=(matrix.shape[0], len(used)))
    weights = np.zeros((FEATURES, targets.shape[1]))
    for model, target in enumerate(targets.T):
        weights[used, model] = lsqr(compact, target, damp=float(np.sqrt(ridge)), iter_lim=STEPS)[0]
    return weights


def _matrix(rows: Sequence[Counts]) -> csr_array:
    starts = np.cumsum([0, *(len(numbers) for numbers, _ in rows)], dtype=np.int32)
    numbers = np.concatenate([numbers for numbers, _ in rows]).astype(np.int32)
    values = np.concatenate([values for _, values in rows])
    return csr_array((values, numbers, starts), shape=(len(rows), FEATURES))
