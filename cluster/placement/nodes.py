"""Which nodes a pool may run on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.config.schema import NodeClass, PoolConfig
from cluster.types import NodeState


@dataclass(frozen=True, slots=True)
class Fit:
    """The nodes that match and the selector that did; no nodes: `why_not` says what to do."""

    nodes: tuple[NodeState, ...]
    selector: Mapping[str, str] | None = None
    why_not: str = ""


def find_nodes(
    pool_name: str, pool: PoolConfig, node: NodeClass, nodes: Iterable[NodeState], *, memory_bytes: int = 0
) -> Fit:
    """First selector (then its fallbacks in order) that matches a node with enough CPUs, GPUs and memory.

    `memory_bytes`: main memory that one replica needs; 0: not looked at, as on nodes that do not tell theirs.

    Labels follow Ray's label selectors: `value`, `!value`, `in(a,b)`, `!in(a,b)`.
    """
    known = list(nodes)
    gpus = pool_gpus(pool)
    too_small: list[str] = []
    for selector in (node.label_selector, *node.fallbacks):
        matching = [each for each in known if matches(selector, each.labels)]
        fitting = [
            each
            for each in matching
            # All ranks of a replica share one node (STRICT_PACK).
            if each.resources.get("CPU", 0) >= pool.cpus
            and each.resources.get("GPU", 0) >= gpus
            and (each.memory_bytes >= memory_bytes or not each.memory_bytes)
        ]
        if fitting:
            return Fit(tuple(fitting), selector)
        too_small += [each.address for each in matching]
    wanted = " or ".join(_text(selector) for selector in (node.label_selector, *node.fallbacks))
    have = "; ".join(f"{each.address} {_text(each.labels)}" for each in known) or "none"
    if too_small:
        return Fit(
            (),
            why_not=f"pool {pool_name!r} needs {pool.cpus:g} CPUs and {gpus:g} GPUs per replica"
            + (f" and {memory_bytes / 2**30:.1f} GiB of memory" if memory_bytes else "")
            + f"; the matching nodes ({', '.join(dict.fromkeys(too_small))}) have less. "
            "Lower cpus/gpus or add a larger node.",
        )
    return Fit(
        (),
        why_not=f"no node matches pool {pool_name!r} (node class {pool.node_class!r} wants {wanted}). "
        f"Nodes: {have}. "
        "Start a node with these labels (ray start --labels) or add a fallback to the node class.",
    )


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(_value_matches(wanted, labels.get(key)) for key, wanted in selector.items())


def _value_matches(wanted: str, value: str | None) -> bool:
    negated = wanted.startswith("!")
    wanted = wanted.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", wanted)
    options = [option.strip() for option in listed[1].split(",")] if listed else [wanted]
    return (value in options) != negated


def pool_gpus(pool: PoolConfig) -> float:
    return pool.gpus_per_replica


def _text(labels: Mapping[str, str]) -> str:
    shown = {key: value for key, value in labels.items() if key != "ray.io/node-id"}
    return "{" + ", ".join(f"{key}={value}" for key, value in sorted(shown.items())) + "}"
