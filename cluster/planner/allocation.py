"""Which pools of a group do its work: the cheapest first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cluster.planner.observation import PoolFacts

ROUNDING = 1e-9
"""2.0000000001 replicas are 2."""


def replicas_for(work: float) -> int:
    return math.ceil(work - ROUNDING)


def allocate(
    pools: Sequence[PoolFacts], work: Mapping[str, float], most: Mapping[str, int]
) -> dict[str, int]:
    """`work` of each pool in its own replicas; `most` it can have now. Every pool keeps its least; the rest
    of the group's work, in tokens per second, goes to the cheapest per token as far as that can grow, then
    to the next."""
    shares = {pool.name: pool.min_replicas for pool in pools}
    left = sum(work[pool.name] * pool.tokens_per_s for pool in pools)
    left -= sum(pool.min_replicas * pool.tokens_per_s for pool in pools)
    for pool in sorted(pools, key=lambda pool: (pool.usd_per_token, pool.name)):
        if left <= ROUNDING:
            break
        more = min(most[pool.name] - shares[pool.name], replicas_for(left / pool.tokens_per_s))
        shares[pool.name] += max(0, more)
        left -= max(0, more) * pool.tokens_per_s
    return shares
