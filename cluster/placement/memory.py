"""Whether a replica fits into what a machine has free. Pure."""

from __future__ import annotations

from cluster.config import BaseModelConfig, PoolConfig
from cluster.config.memory import GIB, replica_memory


def memory_problem(
    pool_name: str, pool: PoolConfig, model: BaseModelConfig, available_bytes: int, where: str
) -> str | None:
    """A sentence with the arithmetic when one replica does not fit, else None."""
    need = replica_memory(pool, model)
    if need.total_bytes <= available_bytes:
        return None
    return (
        f"pool {pool_name!r} does not fit: {pool.base_model} needs about {need.total_bytes / GIB:.1f} GiB"
        f" ({need.arithmetic}), {where} has {available_bytes / GIB:.1f} GiB free. "
        "Use a smaller model, quantisation, a lower kv_cache_gib, or a larger node."
    )
