"""Which of the known topics a text is on, or none of them.

A text is the sum of the vectors of its tokens and of its pairs of neighbouring tokens, scaled to length 1; a
topic is a direction; the score is their cosine. The token vectors are static embeddings, tuned to the
examples (`training.py`), so a word that no example has still stands where its meaning is. Unknown work is
told from known work by the highest score alone, and goes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.router.array_file import ArrayFile, read_array_file, write_array_file
from cluster.router.embedding.static import StaticEmbedder

KIND, VERSION = "topics", 1
MADE_BY = "sprat router topics"

PAIR_BASE = 1 << 32
"""A pair of tokens is one number: first * PAIR_BASE + second."""

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Nearest(NamedTuple):
    """`topic` is None where `score` is below the threshold: nothing like it was among the examples."""

    topic: str | None
    score: float


@dataclass(frozen=True, slots=True)
class TopicModel:
    """`pairs` has shape (pairs,), sorted; `pair_vectors` (pairs, dims); `directions` (dims, topics), each of
    length 1."""

    embedder: StaticEmbedder
    pairs: Numbers
    pair_vectors: Floats
    topics: tuple[str, ...]
    directions: Floats
    threshold: float

    def nearest(self, text: str) -> Nearest:
        scores = self._vector(text) @ self.directions
        best = int(scores.argmax())
        score = float(scores[best])
        return Nearest(self.topics[best] if score >= self.threshold else None, score)

    def scores(self, texts: Sequence[str]) -> Floats:
        """Cosines, shape (texts, topics); zeros for a text without a known token."""
        found: Floats = np.array([self._vector(text) for text in texts], dtype=np.float32) @ self.directions
        return found

    def _vector(self, text: str) -> Floats:
        tokens = self.embedder.tokens_of(text)
        total: Floats = self.embedder.matrix[tokens].sum(axis=0)
        if len(self.pairs):
            wanted = pairs_of(tokens)
            at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
            total = total + self.pair_vectors[at[self.pairs[at] == wanted]].sum(axis=0)
        length = float(np.sqrt(total @ total))
        return total / np.float32(length) if length else total

    def save(self, path: Path) -> None:
        """With its embedder, so that it can be used alone. Raises ConfigError."""
        arrays: dict[str, NDArray[Any]] = {
            "pairs": self.pairs,
            "pair_vectors": self.pair_vectors.astype(np.float16),
            "directions": self.directions,
            **self.embedder.content().arrays,
        }
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
                arrays["pairs"],
                arrays["pair_vectors"].astype(np.float32),
                tuple(map(str, header["topics"])),
                arrays["directions"],
                float(header["threshold"]),
            )
            dims = made.embedder.dims
            wanted = (len(made.pairs), dims), (dims, len(made.topics))
            if (made.pair_vectors.shape, made.directions.shape) != wanted:
                raise ValueError(f"shapes {made.pair_vectors.shape}, {made.directions.shape}")  # noqa: TRY301
        except Exception as error:  # the tokenizer's own errors are plain Exceptions
            raise ConfigError(f"{path}: is damaged ({error}); make it again with `{MADE_BY}`.") from error
        return made


def pairs_of(tokens: Sequence[int]) -> Numbers:
    """Of neighbouring tokens, in their order."""
    numbers = np.array(tokens, dtype=np.int64)
    found: Numbers = numbers[:-1] * PAIR_BASE + numbers[1:]
    return found
