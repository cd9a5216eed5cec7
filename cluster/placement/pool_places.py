"""The replicas of one base model as arrays: which of them takes the next adapter. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

CROWDED = 1.25
"""A replica with so much more planned load than the mean takes no adapter for the sake of its rank."""

NOTHING_TO_DISPLACE = float("inf")


class PoolPlaces:
    """Positions are those of the replicas in the sequences that it is made of."""

    def __init__(self, max_ranks: Sequence[int], calls_at_once: Sequence[int]) -> None:
        count = len(max_ranks)
        self._max_rank = np.array(max_ranks, dtype=np.int64)
        self._calls = np.maximum(1.0, np.array(calls_at_once, dtype=np.float64))
        self._room = np.zeros(count, dtype=np.int64)
        self._loads_left = np.zeros(count, dtype=np.int64)
        self._top_rank = np.zeros(count, dtype=np.int64)
        self._busy = np.zeros(count)
        self._lowest = np.full(count, NOTHING_TO_DISPLACE)

    def write(
        self, position: int, *, room: int, loads_left: int, top_rank: int, load: float, lowest: float
    ) -> None:
        """`load`: planned calls at once. `lowest`: the worth of the least wanted adapter there. `top_rank`: 0
        where no adapter is yet."""
        self._room[position] = room
        self._loads_left[position] = loads_left
        self._top_rank[position] = top_rank
        self._busy[position] = load / self._calls[position]
        self._lowest[position] = lowest

    def with_room(self, rank: int, taken: Collection[int], rather: Collection[int]) -> int | None:
        """Of those with a free place: one of `rather`, the one whose ranks are the most alike, the least busy
        one. A crowded one comes last, unless it is of `rather`."""
        free = np.flatnonzero(self._may_load(rank, taken) & (self._room > 0))
        if not free.size:
            return None
        busy = self._busy[free]
        # Once a batch has a high rank, stock kernels compute all of it at that rank.
        top = self._top_rank[free]
        unlike = np.where(top == 0, 0.0, np.abs(np.log2(rank) - np.log2(np.maximum(top, 1))))
        crowded = busy > CROWDED * self._busy.mean()
        other = ~np.isin(free, list(rather)) if rather else np.zeros(free.size, dtype=np.bool_)
        return int(free[np.lexsort((free, busy, unlike, crowded, other))[0]])

    def least_wanted(self, rank: int, taken: Collection[int]) -> tuple[int, float] | None:
        """Where the least wanted adapter of all has its place, and what that is worth."""
        worth = np.where(self._may_load(rank, taken), self._lowest, NOTHING_TO_DISPLACE)
        position = int(worth.argmin())
        found = float(worth[position])
        return None if found == NOTHING_TO_DISPLACE else (position, found)

    def _may_load(self, rank: int, taken: Collection[int]) -> NDArray[np.bool_]:
        may = (self._max_rank >= rank) & (self._loads_left > 0)
        if taken:
            may[list(taken)] = False
        return may
