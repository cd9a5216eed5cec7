"""How many nodes of which size a fleet needs, per node class. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.config.memory import ENGINE_OVERHEAD_BYTES, replica_memory_bytes, weights_bytes
from cluster.config.schema import ClusterConfig, NodeClass, PoolConfig
from cluster.placement.nodes import pool_gpus

RAY_BYTES = 2 * 2**30
"""Raylet, agents and the object store of a node: a declared estimate."""

GATEWAY_CPUS = 1
GATEWAY_BYTES = 2**30
"""A gateway with its ledger's writer takes 181 MiB under load (README.md); the rest is for bodies."""


@dataclass(frozen=True, slots=True)
class NodeSize:
    """`gpus`: whole cards. `memory_bytes`: main memory."""

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of one class. `labels`: what makes Ray's label selector of the class match."""

    node_class: str
    node: NodeClass
    labels: dict[str, str]
    size: NodeSize
    min_nodes: int
    max_nodes: int
    runs_gateways: bool


def pools_of_class(config: ClusterConfig, node_class: str) -> dict[str, PoolConfig]:
    return {name: pool for name, pool in config.pools.items() if pool.node_class == node_class}


def classes_in_use(config: ClusterConfig) -> list[str]:
    """Those that run something, in the order of the file."""
    used = {pool.node_class for pool in config.pools.values()} | {config.gateway.node_class}
    return [name for name in config.node_classes if name in used]


def node_group(config: ClusterConfig, node_class: str, size: NodeSize | None = None) -> NodeGroup:
    """`size`: of one node; None: the smallest that holds the largest replica of the class.

    Raises ValueError where a replica does not fit on a node of that size.
    """
    pools = pools_of_class(config, node_class)
    gateways = config.gateway.replicas if config.gateway.node_class == node_class else 0
    chosen = size or smallest_size(config, node_class)
    for name, pool in pools.items():
        if pool.cpus > chosen.cpus or pool_gpus(pool) > chosen.gpus:
            raise ValueError(
                f"a replica of pool {name!r} needs {pool.cpus:g} CPUs and {pool_gpus(pool):g} GPUs, "
                f"a node of class {node_class!r} has {chosen.cpus} and {chosen.gpus}"
            )
    return NodeGroup(
        node_class=node_class,
        node=config.node_classes[node_class],
        labels=concrete_labels(config.node_classes[node_class].label_selector),
        size=chosen,
        min_nodes=max(_nodes_for(((p, p.min_replicas) for p in pools.values()), chosen), gateways),
        max_nodes=max(_nodes_for(((p, p.max_replicas) for p in pools.values()), chosen), gateways, 1),
        runs_gateways=gateways > 0,
    )


def smallest_size(config: ClusterConfig, node_class: str) -> NodeSize:
    """Of a node that is filled by the largest replica of the class, or by as many smaller ones as share its
    cards. Replicas without cards have a node each."""
    pools = pools_of_class(config, node_class)
    gpus = max((math.ceil(pool_gpus(pool)) for pool in pools.values()), default=0)
    cpus, memory_bytes = 0.0, 0
    for pool in pools.values():
        on_one_node = int(gpus / pool_gpus(pool)) if pool_gpus(pool) else 1
        cpus = max(cpus, on_one_node * max(pool.cpus, pool.threads))
        memory_bytes = max(memory_bytes, on_one_node * main_memory_bytes(config, pool))
    if config.gateway.node_class == node_class:
        cpus, memory_bytes = cpus + GATEWAY_CPUS, memory_bytes + GATEWAY_BYTES
    return NodeSize(max(1, math.ceil(cpus)), gpus, memory_bytes + RAY_BYTES)


def main_memory_bytes(config: ClusterConfig, pool: PoolConfig) -> int:
    """Of one replica. Weights on their way to a card pass through the node's memory."""
    model = config.base_models[pool.base_model]
    if pool_gpus(pool) > 0 and pool.engine == "vllm":
        return ENGINE_OVERHEAD_BYTES + weights_bytes(pool, model)
    return replica_memory_bytes(pool, model)


def concrete_labels(selector: dict[str, str]) -> dict[str, str]:
    """Labels with which a node matches `selector`: the first of `in(a, b)`; nothing for what must not be."""
    labels: dict[str, str] = {}
    for key, wanted in selector.items():
        if wanted.startswith("!"):
            continue
        is_list = wanted.startswith("in(") and wanted.endswith(")")
        labels[key] = wanted[3:-1].split(",")[0].strip() if is_list else wanted
    return labels


def _nodes_for(replicas: Iterable[tuple[PoolConfig, int]], size: NodeSize) -> int:
    """First fit, the largest replicas first."""
    wanted = [
        (pool_gpus(pool), pool.cpus)
        for pool, count in replicas
        for _ in range(count)
        if pool.engine != "upstream"
    ]
    free: list[tuple[float, float]] = []
    for gpus, cpus in sorted(wanted, reverse=True):
        for position, (free_gpus, free_cpus) in enumerate(free):
            if gpus <= free_gpus + 1e-9 and cpus <= free_cpus + 1e-9:
                free[position] = (free_gpus - gpus, free_cpus - cpus)
                break
        else:
            free.append((size.gpus - gpus, size.cpus - cpus))
    return len(free)
