"""A learned model of usual size for the bench: its labels are made up, so only its speed means anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PROMPTS = 10_000
WORDS_PER_PROMPT = 60
VOCABULARY = 8_000
SHARES_RIGHT = {"cheap": 0.93, "dear": 0.95}
"""So close that the cheap one is always good enough."""


def write_made_up_model(file: Path) -> None:
    from cluster.router.correctness import CorrectnessModel

    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, size)) for size in generator.integers(2, 10, VOCABULARY)]
    # Some words are frequent and most are rare, as in any language.
    chance = 1 / np.arange(1, VOCABULARY + 1)
    drawn = generator.choice(VOCABULARY, (PROMPTS, WORDS_PER_PROMPT), p=chance / chance.sum())
    prompts = [" ".join(words[number] for number in row) for row in drawn]
    right = generator.random((PROMPTS, len(SHARES_RIGHT))) < list(SHARES_RIGHT.values())
    CorrectnessModel.fit(tuple(SHARES_RIGHT), prompts, right, seed=0).save(file)
