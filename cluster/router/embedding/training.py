"""Topics from examples: static embeddings tuned until the examples of a topic point where their topic does.

Softmax regression on cosines, by Adam over the rows that a batch touches. Words are left out at random, so
that no topic hangs on one of them. Examples out of scope have a direction of their own while it trains, which
keeps texts like them away from the topics. Ten passes over 15,000 examples take half a minute of one core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, cos, pi
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cluster.errors import ConfigError
from cluster.router.embedding.static import StaticEmbedder
from cluster.router.embedding.topics import Floats, Numbers, TopicModel, pairs_of
from cluster.router.folds import part_of_rows

PASSES = 10
BATCH = 256
FEWEST_STEPS = 150
"""Few examples are passed more often."""
SHARPNESS = 16.0
"""Of the softmax over cosines, which are between -1 and 1."""
SMOOTHED = 1 / 3000
"""Share of each other topic in what an example is to say, so that a cosine is best half a unit above the
others': exp(-SHARPNESS / 2)."""
SMOOTHED_AT_MOST = 0.05
"""Of all topics together."""
DROPPED_FEATURES = 0.1
DROPPED_DIMS = 0.2

# Steps of Adam, as shares of the size of a token's coordinate.
TOKEN_STEP = 0.01
PAIR_STEP = 0.005
DIRECTION_STEP = 0.01
DECAY_1, DECAY_2, TINY = 0.9, 0.999, 1e-8

PAIR_SEEN = 2
"""Pairs in fewer examples have no vector."""
TOLD_EVERY = 100
LOSS = 0.015
"""Of accuracy in scope that the rejection of unknown work may cost."""
FOLDS = 4
FEWEST_OF_A_TOPIC = 5

Tell = Callable[[str], None]


class Examples(NamedTuple):
    """Texts with their topics; None is out of scope."""

    texts: tuple[str, ...]
    topics: tuple[str | None, ...]

    def of(self, rows: Sequence[int]) -> Examples:
        return Examples(tuple(self.texts[row] for row in rows), tuple(self.topics[row] for row in rows))


def learn_topics(
    embedder: StaticEmbedder,
    examples: Examples,
    *,
    validation: Examples | None = None,
    seed: int,
    tell: Tell = lambda _: None,
) -> TopicModel:
    """The threshold is chosen on `validation`; without it, on the examples themselves, a part of them left
    out at a time, which takes FOLDS times as long again. Raises ConfigError for too few examples."""
    _require_enough(examples)
    model = _tuned(embedder, examples, seed, tell)
    if validation is not None:
        judged = [_judged(model, validation)]
    else:
        judged = []
        parts = part_of_rows(len(examples.texts), FOLDS, seed=seed)
        for part in range(FOLDS):
            tell(f"threshold: part {part + 1} of {FOLDS} left out")
            inside, outside = np.flatnonzero(parts != part).tolist(), np.flatnonzero(parts == part).tolist()
            fold = _tuned(embedder, examples.of(inside), seed, tell)
            judged.append(_judged(fold, examples.of(outside)))
    scores, right, in_scope = (np.concatenate(each) for each in zip(*judged, strict=True))
    return replace(model, threshold=rejection_threshold(scores, right, int(in_scope.sum())))


def rejection_threshold(scores: Floats, right: NDArray[np.bool_], in_scope: int) -> float:
    """The highest cut at which at most LOSS of the `in_scope` examples are taken for unknown though they were
    told right. `scores` and `right` are theirs, or those of more; examples out of scope are never right. It
    needs none of those: what nobody has seen yet need not be like them. Raises ConfigError."""
    if not right.any():
        raise ConfigError("No example was told right: the topics cannot be told apart by these examples.")
    ranked = np.sort(scores[right])
    return float(ranked[min(int(LOSS * in_scope), len(ranked) - 1)])


def _judged(model: TopicModel, examples: Examples) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Highest scores, whether their topics are right, and which examples are in scope."""
    scores = model.scores(examples.texts)
    told = zip(scores.argmax(axis=1), examples.topics, strict=True)
    right = np.array([model.topics[at] == topic for at, topic in told])
    return scores.max(axis=1), right, np.array([topic is not None for topic in examples.topics])


def _require_enough(examples: Examples) -> None:
    counts = Counter(topic for topic in examples.topics if topic is not None)
    if not counts:
        raise ConfigError("There is no example with a topic.")
    few = [topic for topic, count in counts.items() if count < FEWEST_OF_A_TOPIC]
    if few:
        raise ConfigError(
            f"Too few examples of {', '.join(few[:5])}{' and others' if len(few) > 5 else ''}: "
            f"give at least {FEWEST_OF_A_TOPIC} of each topic."
        )


def _tuned(embedder: StaticEmbedder, examples: Examples, seed: int, tell: Tell) -> TopicModel:
    """With a threshold that lets everything pass."""
    topics = tuple(sorted({topic for topic in examples.topics if topic is not None}))
    targets = _targets(examples.topics, topics)
    tokens = [embedder.tokens_of(text) for text in examples.texts]
    used = np.unique(np.concatenate([np.array(each, dtype=np.int64) for each in tokens]))
    pairs = _frequent_pairs(tokens)
    matrix = _counts(tokens, used, pairs)
    size = float(np.sqrt((embedder.matrix[used] ** 2).mean())) or 1.0
    rows = np.zeros((len(used) + len(pairs), embedder.dims), dtype=np.float32)
    rows[: len(used)] = embedder.matrix[used] / size
    row_steps = np.full((len(rows), 1), PAIR_STEP, dtype=np.float32)
    row_steps[: len(used)] = TOKEN_STEP
    directions = _unit(targets.T @ _unit(matrix @ rows)[0])[0]

    generator = np.random.default_rng(seed)
    of_rows, of_directions = _Adam(rows), _Adam(directions)
    batches = _batches(len(tokens), generator)
    for step, batch in enumerate(batches):
        if step % TOLD_EVERY == 0:
            tell(f"tuning: step {step} of {len(batches)}")
        pace = (1 + cos(pi * step / len(batches))) / 2
        found = _drop(matrix[batch], generator)
        touched, columns = np.unique(found.indices, return_inverse=True)
        found = csr_array((found.data, columns, found.indptr), shape=(len(batch), len(touched)))
        vectors, lengths = _unit(found @ rows[touched])
        kept = (generator.random(vectors.shape) >= DROPPED_DIMS).astype(np.float32) / (1 - DROPPED_DIMS)
        unit_directions, direction_lengths = _unit(directions)
        seen = vectors * kept
        slope = (_softmax(SHARPNESS * (seen @ unit_directions.T)) - targets[batch]) * (SHARPNESS / len(batch))
        of_vectors = _through_unit((slope @ unit_directions) * kept, vectors, lengths)
        of_directions.step(
            np.arange(len(directions)),
            _through_unit(slope.T @ seen, unit_directions, direction_lengths),
            np.float32(DIRECTION_STEP * pace),
        )
        of_rows.step(touched, found.T @ of_vectors, row_steps[touched] * np.float32(pace))

    tuned = embedder.matrix / size
    tuned[used] = rows[: len(used)]
    return TopicModel(
        StaticEmbedder(embedder.tokenizer, tuned),
        pairs,
        rows[len(used) :],
        topics,
        np.ascontiguousarray(_unit(directions[: len(topics)])[0].T),
        -1.0,
    )


class _Adam:
    """Of the rows that are touched (arXiv 1412.6980, lazily)."""

    def __init__(self, values: Floats) -> None:
        self._values = values
        self._first = np.zeros_like(values)
        self._second = np.zeros_like(values)
        self._steps = 0

    def step(self, rows: Numbers, slope: Floats, size: Floats | np.float32) -> None:
        """Changes `values[rows]`."""
        self._steps += 1
        first = DECAY_1 * self._first[rows] + (1 - DECAY_1) * slope
        second = DECAY_2 * self._second[rows] + (1 - DECAY_2) * slope * slope
        self._first[rows], self._second[rows] = first, second
        scaled = first / (np.sqrt(second / (1 - DECAY_2**self._steps)) + TINY)
        self._values[rows] -= size / (1 - DECAY_1**self._steps) * scaled


def _targets(of_examples: Sequence[str | None], topics: Sequence[str]) -> Floats:
    """Shape (examples, topics): the topic's share, and a little for the others. Examples out of scope have a
    last column of their own, where there are any."""
    column = {topic: number for number, topic in enumerate((*topics, None))}
    columns = len(topics) + (None in of_examples)
    of_others = min(SMOOTHED, SMOOTHED_AT_MOST / columns)
    found = np.full((len(of_examples), columns), of_others, dtype=np.float32)
    own = [column[topic] for topic in of_examples]
    found[np.arange(len(of_examples)), own] = 1 - of_others * (columns - 1)
    return found


def _frequent_pairs(tokens: Sequence[Sequence[int]]) -> Numbers:
    numbers, seen = np.unique(
        np.concatenate([np.unique(pairs_of(each)) for each in tokens]), return_counts=True
    )
    found: Numbers = numbers[seen >= PAIR_SEEN]
    return found


def _counts(tokens: Sequence[Sequence[int]], used: Numbers, pairs: Numbers) -> csr_array:
    """How often each used token, and then each pair, stands in each text: shape (texts, used + pairs)."""
    rows = []
    for each in tokens:
        found = pairs_of(each)
        known = found[np.isin(found, pairs)]
        rows.append(
            np.concatenate(
                (np.searchsorted(used, each), len(used) + np.searchsorted(pairs, known)), dtype=np.int64
            )
        )
    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    columns = np.concatenate(rows)
    ones = np.ones(len(columns), dtype=np.float32)
    found = csr_array((ones, columns, starts), shape=(len(rows), len(used) + len(pairs)))
    found.sum_duplicates()
    return found


def _batches(count: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of each step; every row once per pass."""
    per_pass = ceil(count / BATCH)
    passes = max(PASSES, ceil(FEWEST_STEPS / per_pass))
    return [part for _ in range(passes) for part in np.array_split(generator.permutation(count), per_pass)]


def _drop(matrix: csr_array, generator: np.random.Generator) -> csr_array:
    kept = generator.random(matrix.nnz) >= DROPPED_FEATURES
    return csr_array((matrix.data * kept, matrix.indices, matrix.indptr), shape=matrix.shape)


def _unit(vectors: Floats) -> tuple[Floats, Floats]:
    """Rows of length 1, and their lengths before, of shape (rows, 1)."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    lengths[lengths == 0] = 1
    return vectors / lengths, lengths


def _through_unit(slope: Floats, unit: Floats, lengths: Floats) -> Floats:
    """Of the vectors, from that of their unit vectors."""
    found: Floats = (slope - unit * np.einsum("ij,ij->i", slope, unit)[:, None]) / lengths
    return found


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found
