"""Static embeddings without weights, made up for tests: words point where their field does."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cluster.router.embedding.static import StaticEmbedder
from cluster.router.embedding.training import Examples

FOOD = ["eat", "cook", "pasta", "dinner", "soup", "recipe"]
TRAVEL = ["fly", "plane", "ticket", "hotel", "train", "visit"]
OTHER = ["quark", "lepton", "boson", "proton", "gluon", "muon"]
FILLERS = ["the", "a", "my", "please", "to", "for"]
DIMS = 8


def tiny_embedder() -> StaticEmbedder:
    """Words of one field point the same way, apart from some noise."""
    words = ["[UNK]", *FOOD, *TRAVEL, *OTHER, *FILLERS]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    matrix = np.random.default_rng(0).normal(0, 0.1, (len(words), DIMS)).astype(np.float32)
    for axis, field in enumerate((FOOD, TRAVEL, OTHER)):
        for word in field:
            matrix[words.index(word), axis] += 1
    matrix[0] = 0
    return StaticEmbedder(tokenizer, matrix)


def sentences(field: list[str], count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join([*generator.choice(FILLERS, 3), *generator.choice(field, 2)]) for _ in range(count)]


def topic_examples(count: int = 30, others: int = 0, seed: int = 0) -> Examples:
    texts = (
        sentences(FOOD, count, seed) + sentences(TRAVEL, count, seed + 1) + sentences(OTHER, others, seed + 2)
    )
    return Examples(tuple(texts), ("food",) * count + ("travel",) * count + (None,) * others)
