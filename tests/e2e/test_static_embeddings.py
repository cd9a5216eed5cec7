"""Static embeddings from MiniLM's real weights, of a few words: all of them take a minute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from deployments.distil.encoder import token_vectors
from deployments.distil.static_embeddings import MODEL, SHA256, SOURCE
from deployments.weights.progress import open_progress
from deployments.weights.store import WeightsStore, default_root

pytestmark = pytest.mark.e2e

WORDS = ["dog", "puppy", "cat", "loan", "mortgage", "bank"]


@pytest.fixture(scope="module")
def encoder() -> Path:
    with open_progress() as progress:
        return WeightsStore(default_root()).ensure(MODEL, SOURCE, SHA256, progress=progress)


def test_words_of_one_field_lie_together(encoder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    heard = []
    vectors = token_vectors(
        encoder,
        tokenizer,
        [tokenizer.token_to_id(word) for word in WORDS],
        on_tokens=lambda done, total: heard.append((done, total)),
    )

    assert heard == [(6, 6)]
    assert vectors.shape == (6, 384)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T
    pets, money = [0, 1, 2], [3, 4, 5]
    within = min(likeness[np.ix_(field, field)].min() for field in (pets, money))
    assert within > likeness[np.ix_(pets, money)].max()
