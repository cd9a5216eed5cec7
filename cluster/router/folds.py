"""Rows in parts of equal size, to leave out one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def part_of_rows(
    count: int, parts: int, *, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Which of the parts 0 … parts - 1 each row is in, at random. With `groups` (one name per row), rows of a
    group stay together."""
    generator = np.random.default_rng(seed)
    if groups is None:
        return generator.permutation(count) % parts
    names = sorted(set(groups))
    part_of = dict(zip(names, generator.permutation(len(names)) % parts, strict=True))
    return np.array([part_of[group] for group in groups])
