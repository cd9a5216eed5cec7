"""Which of the known topics a text is on, or none of them: kernel ridge regression on static embeddings.

The score of a topic is what a regression on "is it this topic" expects, so it falls towards 0 away from all
examples: unknown work is told from known work by the highest score alone, and goes up. The kernel is a
Gaussian on vectors of length 1; of many examples some are its centres (Nyström), so that a decision's time
does not grow with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from cluster.errors import ConfigError
from cluster.router.array_file import ArrayFile, read_array_file, write_array_file
from cluster.router.embedding.static import StaticEmbedder
from cluster.router.folds import part_of_rows

KIND, VERSION = "topics", 1
MADE_BY = "sprat router topics"

GAMMA = 2.0
RIDGE = 0.3
CENTRES = 3000
LOSS = 0.01
"""Of accuracy in scope that the rejection of unknown work may cost."""
FOLDS = 4
FEWEST_OF_A_TOPIC = 5

Floats = NDArray[np.float32]


class Examples(NamedTuple):
    """Texts with their topics; None is out of scope."""

    texts: tuple[str, ...]
    topics: tuple[str | None, ...]


class Nearest(NamedTuple):
    """`topic` is None where `score` is below the threshold: nothing like it was among the examples."""

    topic: str | None
    score: float


@dataclass(frozen=True, slots=True)
class TopicModel:
    """`centres` has shape (centres, dims), `weights` (centres, topics)."""

    embedder: StaticEmbedder
    topics: tuple[str, ...]
    centres: Floats
    weights: Floats
    threshold: float

    def nearest(self, text: str) -> Nearest:
        scores = self.scores((text,))[0]
        best = int(scores.argmax())
        score = float(scores[best])
        return Nearest(self.topics[best] if score >= self.threshold else None, score)

    def scores(self, texts: Sequence[str]) -> Floats:
        """Shape (texts, topics)."""
        found: Floats = _kernel(self.embedder.embed_all(texts), self.centres) @ self.weights
        return found

    @classmethod
    def fit(
        cls, embedder: StaticEmbedder, examples: Examples, *, validation: Examples | None = None, seed: int
    ) -> TopicModel:
        """The threshold is chosen on `validation`; without it, on the examples themselves, a part of them
        left out at a time. Raises ConfigError for too few examples."""
        _require_enough(examples)
        vectors = embedder.embed_all(examples.texts)
        made = _fitted(embedder, vectors, examples.topics, seed)
        if validation is not None:
            scores, truth = made.scores(validation.texts), validation.topics
            known = made.topics
        else:
            known = made.topics
            scores, truth = np.zeros((len(vectors), len(known)), dtype=np.float32), examples.topics
            parts = part_of_rows(len(vectors), FOLDS, seed=seed)
            for part in range(FOLDS):
                inside, outside = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
                fold = _fitted(embedder, vectors[inside], [examples.topics[row] for row in inside], seed)
                columns = np.array([known.index(topic) for topic in fold.topics])
                scores[np.ix_(outside, columns)] = _kernel(vectors[outside], fold.centres) @ fold.weights
        right = np.array([known[at] == topic for at, topic in zip(scores.argmax(axis=1), truth, strict=True)])
        in_scope = sum(topic is not None for topic in truth)
        return replace(made, threshold=rejection_threshold(scores.max(axis=1), right, in_scope))

    def save(self, path: Path) -> None:
        """With its embedder, so that it can be used alone. Raises ConfigError."""
        arrays = {"centres": self.centres, "weights": self.weights, **self.embedder.content().arrays}
        header = {"topics": list(self.topics), "threshold": self.threshold}
        write_array_file(path, ArrayFile(header, arrays), kind=KIND, version=VERSION)

    @classmethod
    def load(cls, path: Path) -> TopicModel:
        """Raises ConfigError."""
        content = read_array_file(path, kind=KIND, version=VERSION, made_by=MADE_BY)
        header, arrays = content
        try:
            made = cls(
                StaticEmbedder.of(content),
                tuple(map(str, header["topics"])),
                arrays["centres"],
                arrays["weights"],
                float(header["threshold"]),
            )
            wanted = (len(made.centres), made.embedder.dims), (len(made.centres), len(made.topics))
            if (made.centres.shape, made.weights.shape) != wanted:
                raise ValueError(f"shapes {made.centres.shape}, {made.weights.shape}")  # noqa: TRY301
        except Exception as error:  # the tokenizer's own errors are plain Exceptions
            raise ConfigError(f"{path}: is damaged ({error}); make it again with `{MADE_BY}`.") from error
        return made


def _require_enough(examples: Examples) -> None:
    counts: dict[str, int] = {}
    for topic in examples.topics:
        if topic is not None:
            counts[topic] = counts.get(topic, 0) + 1
    if not counts:
        raise ConfigError("There is no example with a topic.")
    few = [topic for topic, count in counts.items() if count < FEWEST_OF_A_TOPIC]
    if few:
        raise ConfigError(
            f"Too few examples of {', '.join(few[:5])}{' and others' if len(few) > 5 else ''}: "
            f"give at least {FEWEST_OF_A_TOPIC} of each topic."
        )


def _fitted(embedder: StaticEmbedder, vectors: Floats, topics: Sequence[str | None], seed: int) -> TopicModel:
    known = tuple(sorted({topic for topic in topics if topic is not None}))
    column = {topic: number for number, topic in enumerate(known)}
    targets = np.zeros((len(vectors), len(known)), dtype=np.float32)
    for row, topic in enumerate(topics):
        if topic is not None:  # an example out of scope is none of them: zeros
            targets[row, column[topic]] = 1
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:CENTRES]
    centres = vectors[np.sort(chosen)]
    seen = _kernel(vectors, centres)
    gram = seen.T @ seen + np.float32(RIDGE) * _kernel(centres, centres)
    gram[np.diag_indices_from(gram)] += np.float32(1e-4)  # equal texts make it singular
    weights = cho_solve(cho_factor(gram.astype(np.float64), overwrite_a=True), seen.T @ targets)
    return TopicModel(embedder, known, centres, weights.astype(np.float32), 0.0)


def _kernel(first: Floats, second: Floats) -> Floats:
    """Of vectors of length 1: exp(-gamma |x - y|²)."""
    found: Floats = np.exp(np.float32(2 * GAMMA) * (first @ second.T - np.float32(1)))
    return found


def rejection_threshold(scores: Floats, right: NDArray[np.bool_], in_scope: int) -> float:
    """The highest cut at which at most LOSS of the `in_scope` examples are taken for unknown though they were
    told right. `scores` and `right` are theirs, or those of more; examples out of scope are never right. It
    needs none of those: what nobody has seen yet need not be like them. Raises ConfigError."""
    if not right.any():
        raise ConfigError("No example was told right: the topics cannot be told apart by these examples.")
    ranked = np.sort(scores[right])
    return float(ranked[min(int(LOSS * in_scope), len(ranked) - 1)])
