"""Policies as far as they can be judged from label files: a score per prompt, higher where the strong model
is worth more."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.router.correctness import CorrectnessModel
from cluster.router.evaluation.labels import Labels

Floats = NDArray[np.float64]


class Scorer(Protocol):
    name: str

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:
        """`by_group`: the scores are for other topics than those of `train`."""

    def scores(self, prompts: tuple[str, ...]) -> Floats: ...

    def p_weak(self, prompts: tuple[str, ...]) -> Floats | None:
        """P(the weak model answers correctly), where the policy has an opinion on it."""


class Learned:
    """What the two models are expected to answer correctly, and the difference."""

    name = "learned"
    _model: CorrectnessModel

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:
        right = np.column_stack((np.array(train.weak), np.array(train.strong)))
        groups = train.groups if by_group else None
        self._model = CorrectnessModel.fit(
            (train.weak_model, train.strong_model), train.prompts, right, seed=seed, groups=groups
        )

    def scores(self, prompts: tuple[str, ...]) -> Floats:
        raw = self._model.raw(prompts)
        difference: Floats = raw[:, 1] - raw[:, 0]
        return difference

    def p_weak(self, prompts: tuple[str, ...]) -> Floats | None:
        return self._model.probabilities(prompts)[:, 0]


class PromptLength:
    """The longest prompts go up. No training, and better than most published routers on their own labels."""

    name = "prompt_length"

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None: ...

    def scores(self, prompts: tuple[str, ...]) -> Floats:
        return np.array([float(len(prompt)) for prompt in prompts])

    def p_weak(self, prompts: tuple[str, ...]) -> Floats | None:  # noqa: ARG002 (protocol)
        return None


class Random:
    name = "random"
    _seed = 0

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:  # noqa: ARG002 (protocol)
        self._seed = seed

    def scores(self, prompts: tuple[str, ...]) -> Floats:
        return np.random.default_rng(self._seed).random(len(prompts))

    def p_weak(self, prompts: tuple[str, ...]) -> Floats | None:  # noqa: ARG002 (protocol)
        return None


def all_scorers() -> tuple[Scorer, ...]:
    return (Learned(), PromptLength(), Random())
