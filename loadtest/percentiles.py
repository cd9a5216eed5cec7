"""One stated method: nearest rank. The p-th percentile of n values is the ceil(p/100 · n)-th smallest.

It is always a value that was measured. With fewer than 100 values p99 is the largest of them, so a count
belongs beside every percentile.
"""

from __future__ import annotations

from collections.abc import Sequence

METHOD = "nearest rank: the ceil(p/100*n)-th smallest of the n values"


def nearest_rank(ordered: Sequence[float], percent: int) -> float | None:
    """`ordered` ascending; None when there is nothing."""
    if not ordered:
        return None
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
