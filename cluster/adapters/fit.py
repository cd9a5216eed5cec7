"""Which pools of a configuration can serve an adapter version, and why the others cannot."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.adapters.errors import BaseMismatch, RankAbovePool
from cluster.adapters.version import AdapterVersion
from cluster.config import ClusterConfig, PoolConfig

NO_SLOTS = "no_adapter_slots"


@dataclass(frozen=True, slots=True)
class PoolFit:
    """`state`: `ok`, or the code of what is in the way; `detail`: a sentence, empty where nothing is."""

    pool: str
    state: str
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.state == "ok"


def pool_fits(version: AdapterVersion, config: ClusterConfig) -> tuple[PoolFit, ...]:
    """For every pool, in the order of the configuration."""
    return tuple(_fit(version, name, pool) for name, pool in config.pools.items())


def _fit(version: AdapterVersion, name: str, pool: PoolConfig) -> PoolFit:
    if pool.base_model != version.base_model:
        return PoolFit(
            name, BaseMismatch.code, f"it serves {pool.base_model}, the adapter is for {version.base_model}"
        )
    if not pool.slots_for_adapters:
        return PoolFit(name, NO_SLOTS, "it has no slots for adapters: set adapter_slots")
    if version.rank > pool.max_rank:
        return PoolFit(
            name,
            RankAbovePool.code,
            f"the adapter has rank {version.rank}, it takes {pool.max_rank}: set max_rank: {version.rank}",
        )
    return PoolFit(name, "ok")
