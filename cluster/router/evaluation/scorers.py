"""Policies as far as they can be judged from label files: a score per prompt, higher where the strong model
is worth more."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.router.correctness import CorrectnessModel
from cluster.router.embedding.static import StaticEmbedder
from cluster.router.evaluation.labels import Labels

Floats = NDArray[np.float64]


class Scored(NamedTuple):
    """Of some prompts. `p_weak`: P(the weak model is right), where the policy has an opinion on it."""

    scores: Floats
    p_weak: Floats | None = None


class Scorer(Protocol):
    name: str

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:
        """`by_group`: the scores are for other topics than those of `train`."""

    def score(self, prompts: tuple[str, ...]) -> Scored: ...


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

    def score(self, prompts: tuple[str, ...]) -> Scored:
        raw = self._model.raw(prompts)
        return Scored(raw[:, 1] - raw[:, 0], self._model.calibrated(raw)[:, 0])


class Embedding:
    """What the two models did on the labelled prompts whose meaning is nearest."""

    name = "embedding"
    NEAREST = 50
    AT_ONCE = 256
    _known: NDArray[np.float32]
    _right: Floats

    def __init__(self, embedder: StaticEmbedder) -> None:
        self._embedder = embedder

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:  # noqa: ARG002 (protocol)
        self._known = self._embedder.embed_all(train.prompts)
        self._right = np.column_stack((train.weak, train.strong)).astype(float)

    def score(self, prompts: tuple[str, ...]) -> Scored:
        nearest = min(self.NEAREST, len(self._known))
        means = np.empty((len(prompts), 2))
        for start in range(0, len(prompts), self.AT_ONCE):
            likeness = self._embedder.embed_all(prompts[start : start + self.AT_ONCE]) @ self._known.T
            best = np.argpartition(likeness, -nearest, axis=1)[:, -nearest:]
            means[start : start + len(best)] = self._right[best].mean(axis=1)
        return Scored(means[:, 1] - means[:, 0], means[:, 0])


class PromptLength:
    """The longest prompts go up. No training, and better than most published routers on their own labels."""

    name = "prompt_length"

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None: ...

    def score(self, prompts: tuple[str, ...]) -> Scored:
        return Scored(np.array([float(len(prompt)) for prompt in prompts]))


class Random:
    name = "random"
    _seed = 0

    def fit(self, train: Labels, *, by_group: bool, seed: int) -> None:  # noqa: ARG002 (protocol)
        self._seed = seed

    def score(self, prompts: tuple[str, ...]) -> Scored:
        return Scored(np.random.default_rng(self._seed).random(len(prompts)))


def all_scorers(embedder: StaticEmbedder) -> tuple[Scorer, ...]:
    return (Learned(), Embedding(embedder), PromptLength(), Random())
