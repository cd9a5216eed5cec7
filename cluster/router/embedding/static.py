"""A text as one vector, in a tenth of a millisecond: the mean of its tokens' vectors.

The vectors come from a sentence encoder that has read each token alone (`deployments/distil`); their weights,
by which frequent tokens count less, are in their lengths. Order is lost, meaning mostly kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cluster.errors import ConfigError
from cluster.router.array_file import ArrayFile, read_array_file, write_array_file
from cluster.router.ngrams import shortened

KIND, VERSION = "static embeddings", 1
MADE_BY = "sprat router embed"

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StaticEmbedder:
    """`matrix` has shape (tokens, dims); its rows are those of `tokenizer`'s token ids."""

    tokenizer: Tokenizer
    matrix: Vectors

    @property
    def dims(self) -> int:
        return int(self.matrix.shape[1])

    def tokens_of(self, text: str) -> list[int]:
        """Token ids. Of a long text the two ends are read (`ngrams.LONGEST_TEXT`)."""
        found: list[int] = self.tokenizer.encode(_readable(text), add_special_tokens=False).ids
        return found

    def embed(self, text: str) -> Vectors:
        """Shape (dims,), of length 1; zeros for a text without a token."""
        total: Vectors = self.matrix[self.tokens_of(text)].sum(axis=0)
        length = float(np.sqrt(total @ total))
        return total / np.float32(length) if length else total

    def embed_all(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dims)."""
        return np.array([self.embed(text) for text in texts], dtype=np.float32).reshape(-1, self.dims)

    def content(self) -> ArrayFile:
        """For a file of its own, or as a part of another model's."""
        tokenizer = np.frombuffer(self.tokenizer.to_str().encode(), dtype=np.uint8)
        return ArrayFile({}, {"tokenizer": tokenizer, "matrix": self.matrix.astype(np.float16)})

    @classmethod
    def of(cls, content: ArrayFile) -> StaticEmbedder:
        """Raises ValueError or KeyError."""
        tokenizer = Tokenizer.from_str(content.arrays["tokenizer"].tobytes().decode())
        matrix = content.arrays["matrix"].astype(np.float32)
        if matrix.ndim != 2 or len(matrix) < tokenizer.get_vocab_size():
            raise ValueError(f"{matrix.shape} vectors for {tokenizer.get_vocab_size()} tokens")
        return cls(tokenizer, matrix)

    def save(self, path: Path) -> None:
        """Half precision is enough for sums of unit size. Raises ConfigError."""
        write_array_file(path, self.content(), kind=KIND, version=VERSION)

    @classmethod
    def load(cls, path: Path) -> StaticEmbedder:
        """Raises ConfigError."""
        content = read_array_file(path, kind=KIND, version=VERSION, made_by=MADE_BY)
        try:
            return cls.of(content)
        except Exception as error:  # the tokenizer's own errors are plain Exceptions
            raise ConfigError(f"{path}: is damaged ({error}); make it again with `{MADE_BY}`.") from error


def _readable(text: str) -> str:
    """Without lone surrogates, which JSON can carry and the tokenizer cannot."""
    return shortened(text).encode("utf-8", "replace").decode()
