"""A sentence encoder read token by token: what static embeddings are made of.

Each token of the vocabulary goes through the encoder alone, the vectors lose their least important directions
(PCA), and tokens that stand in every text are made short. model2vec does the same; its distillation does not
install beside the transformers that vLLM needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cluster.router.embedding.static import StaticEmbedder

Vectors = NDArray[np.float32]

DIMS = 256
TOKENS_AT_ONCE = 512
THREADS = 2

FREQUENT = 1e-4
"""A token of frequency f weighs FREQUENT / (FREQUENT + f) (SIF, Arora 2017)."""


def distil(folder: Path, *, on_tokens: Callable[[int, int], None], dims: int = DIMS) -> StaticEmbedder:
    """`folder` holds an encoder in the format of transformers, with a WordPiece vocabulary that is sorted by
    frequency. `on_tokens` hears how many of all tokens are read."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vectors = token_vectors(folder, tokenizer, range(tokenizer.get_vocab_size()), on_tokens=on_tokens)
    matrix = principal(vectors, dims) * frequency_weights(len(vectors))[:, None]
    return StaticEmbedder(tokenizer, matrix)


def token_vectors(
    folder: Path, tokenizer: Tokenizer, tokens: Sequence[int], *, on_tokens: Callable[[int, int], None]
) -> Vectors:
    """Mean of the encoder's last layer over a text of this one token, shape (tokens, hidden)."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    found = []
    with torch.inference_mode():
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            batch = tokens[start : start + TOKENS_AT_ONCE]
            texts = torch.tensor([[first, token, last] for token in batch])
            hidden = encoder(input_ids=texts, attention_mask=torch.ones_like(texts)).last_hidden_state
            found.append(hidden.mean(dim=1).numpy())
            on_tokens(start + len(batch), len(tokens))
    vectors: Vectors = np.concatenate(found)
    return vectors


def principal(vectors: Vectors, dims: int) -> Vectors:
    """The `dims` directions in which they differ most; all where there are fewer."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    found: Vectors = centred @ directions[:, ::-1][:, :dims]
    return found


def frequency_weights(tokens: int) -> Vectors:
    """The vocabulary is sorted by frequency, and frequencies fall as 1 / rank (Zipf)."""
    frequencies = 1 / np.arange(2, tokens + 2)
    frequencies /= frequencies.sum()
    weights: Vectors = (FREQUENT / (FREQUENT + frequencies)).astype(np.float32)
    return weights
