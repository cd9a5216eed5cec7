"""How hard a prompt looks, and what each model makes of that: all there is to go by for prompts unlike any
that were labelled.

Rasch's model (1960): one difficulty per prompt, one ability per model, and P(right) is the sigmoid of ability
minus difficulty. Difficulty is a weighted sum of a few things that can be counted, none of which makes a
prompt easier. One half of it is length. The other half is learned from which labelled prompts the models
failed on, compared within a topic.

It ranks by difficulty, not by the difference between models that labels showed. Within MMLU's subjects the
two agree where the strong model is mostly right, and are opposed where it fails as well (mathematics in one
letter). Which of the two a new kind of prompt is cannot be known without labels of it; a model that mostly
fails would be no reserve, so the first is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from cluster.router.ngrams import shortened

Floats = NDArray[np.float64]

SURFACE = ("characters", "numerals", "sentences", "commas", "short words")
"""Logarithms of counts, and of the mean length of a word, which counts the other way round."""

PRIOR_PROMPTS = 100.0
"""Labelled prompts that "none of this matters" is worth."""

LEAST_SLOPE = 0.02
"""Of length, in failures per standard deviation: what is left where the labels show nothing."""

LEAST_SPREAD = 0.05
"""Of a count's logarithm: what the labelled prompts have less of shows nothing for others."""

LEAST_SHARE = 0.02
"""No model is always wrong or always right."""

_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """`slopes` has the shape of SURFACE, in log-odds; `abilities` (models,)."""

    centre: float
    slopes: Floats
    abilities: Floats

    def probabilities(self, prompt: str) -> Floats:
        """P(the model answers correctly), shape (models,)."""
        difficulty = float(surface_of(prompt) @ self.slopes) - self.centre
        found: Floats = 1 / (1 + np.exp(difficulty - self.abilities))
        return found

    @classmethod
    def fit(
        cls, prompts: Sequence[str], right: NDArray[np.bool_], groups: Sequence[str] | None = None
    ) -> Difficulty:
        """`right` has shape (prompts, models). With `groups`, what differs between them is left aside."""
        surface = np.array([surface_of(prompt) for prompt in prompts])
        failed = 1 - right.mean(axis=1)
        group = np.unique(groups if groups is not None else np.zeros(len(prompts)), return_inverse=True)[1]
        within = np.column_stack([_within(column, group) for column in (*surface.T, failed)])
        scale = np.maximum(within[:, :-1].std(axis=0), LEAST_SPREAD)
        inputs = within[:, :-1] / scale
        prior = np.sqrt(PRIOR_PROMPTS) * np.eye(len(SURFACE))
        slopes, _ = nnls(np.vstack((inputs, prior)), np.concatenate((within[:, -1], np.zeros(len(SURFACE)))))
        slopes[SURFACE.index("characters")] += max((inputs @ slopes).std(), LEAST_SLOPE)
        means = np.clip(right.mean(axis=0), LEAST_SHARE, 1 - LEAST_SHARE)
        slopes = slopes / scale / (means * (1 - means)).mean()  # of a probability → of its log-odds
        return cls(float(surface.mean(axis=0) @ slopes), slopes, np.log(means / (1 - means)))


def surface_of(prompt: str) -> Floats:
    """Shape (SURFACE,)."""
    text = shortened(prompt)
    words = _WORD.findall(text)
    word_length = sum(map(len, words)) / len(words) if words else 0.0
    return np.array(
        [
            log(1 + len(prompt)),
            log(1 + len(_NUMERAL.findall(text))),
            log(1 + len(_SENTENCE_END.findall(text))),
            log(1 + text.count(",")),
            -log(1 + word_length),
        ]
    )


def _within(values: Floats, group: NDArray[np.int64]) -> Floats:
    """Difference from the mean of the row's group."""
    means = np.bincount(group, values) / np.bincount(group)
    found: Floats = values - means[group]
    return found
