"""Whether a replica fits in memory, with the arithmetic. Pure."""

from __future__ import annotations

from cluster.config import BaseModelConfig, PoolConfig
from cluster.placement.nodes import pool_gpus

GIB = 2**30
ENGINE_OVERHEAD_BYTES = int(3.0 * GIB)
"""Replica process, engine core and worker with torch loaded: 0.8 + 0.7 + 1.5 GB measured with a 135M
model on CPU (GATEWAY.md)."""

CPU_REPACKED_SHARE = 4
"""A quarter more for weights that the CPU backend repacks: 12.2 GiB measured in all for 6.6 GiB of them."""

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}


def replica_memory_bytes(pool: PoolConfig, model: BaseModelConfig) -> int:
    """Upper estimate of a CPU replica's memory, or of the GPU memory of one rank's share."""
    weights = model.parameters * BYTES_PER_WEIGHT[pool.dtype] // pool.tensor_parallel
    if pool.engine == "simulated":
        return GIB // 4
    kv_cache = int(pool.kv_cache_gib * GIB)
    if pool_gpus(pool) > 0:
        return weights + kv_cache
    return weights + weights // CPU_REPACKED_SHARE + kv_cache + ENGINE_OVERHEAD_BYTES


def memory_problem(
    pool_name: str, pool: PoolConfig, model: BaseModelConfig, available_bytes: int, where: str
) -> str | None:
    """A sentence with the arithmetic when one replica does not fit, else None."""
    need = replica_memory_bytes(pool, model)
    if need <= available_bytes:
        return None
    weights = model.parameters * BYTES_PER_WEIGHT[pool.dtype] // pool.tensor_parallel
    engine = need - weights - int(pool.kv_cache_gib * GIB)
    sum_shown = (
        f"{weights / GIB:.1f} weights as {pool.dtype} + {pool.kv_cache_gib:.1f} KV cache"
        f" + {engine / GIB:.1f} engine"
        if pool.engine != "simulated"
        else "simulated engine"
    )
    return (
        f"pool {pool_name!r} does not fit: {pool.base_model} needs about {need / GIB:.1f} GiB ({sum_shown}), "
        f"{where} has {available_bytes / GIB:.1f} GiB free. "
        "Use a smaller model, lower kv_cache_gib, or a larger node."
    )
