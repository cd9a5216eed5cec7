"""Instance types of clouds that a node class can stand for: what the launcher needs to know of a machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cluster.config import NodeClass
from cluster.config.memory import GIB
from cluster.errors import ConfigError
from cluster.placement.node_groups import NodeSize

Provider = Literal["aws", "gcp"]
ACCELERATOR_LABEL = "ray.io/accelerator-type"


@dataclass(frozen=True, slots=True)
class Machine:
    instance_type: str
    size: NodeSize


def _machine(instance_type: str, cpus: int, gpus: int, memory_gib: int) -> Machine:
    return Machine(instance_type, NodeSize(cpus, gpus, memory_gib * GIB))


# Virtual CPUs, cards, GiB of memory; declared, not read from the clouds' lists: check yours before `ray up`.
MACHINES: dict[Provider, dict[str, Machine]] = {
    "aws": {
        "CPU": _machine("m7i.2xlarge", 8, 0, 32),
        "T4": _machine("g4dn.2xlarge", 8, 1, 32),
        "L4": _machine("g6.2xlarge", 8, 1, 32),
        "A10G": _machine("g5.2xlarge", 8, 1, 32),
        "L40S": _machine("g6e.2xlarge", 8, 1, 64),
        "A100": _machine("p4d.24xlarge", 96, 8, 1152),
        "H100": _machine("p5.48xlarge", 192, 8, 2048),
        "H200": _machine("p5e.48xlarge", 192, 8, 2048),
    },
    "gcp": {
        "CPU": _machine("n2-standard-8", 8, 0, 32),
        "L4": _machine("g2-standard-8", 8, 1, 32),
        "A100": _machine("a2-highgpu-1g", 12, 1, 85),
        "H100": _machine("a3-highgpu-8g", 208, 8, 1872),
    },
}


def machine_for(node_class: str, node: NodeClass, provider: Provider, chosen: dict[str, Machine]) -> Machine:
    """`chosen`: by the operator, per node class. Raises ConfigError for an accelerator without an entry."""
    if node_class in chosen:
        return chosen[node_class]
    accelerator = accelerator_of(node)
    known = MACHINES[provider]
    if accelerator not in known:
        raise ConfigError(
            f"no {provider} machine is known for accelerator {accelerator!r} of node class {node_class!r}. "
            f"Give one: --machine {node_class}=TYPE:CPUS:GPUS:MEMORY_GIB. Known: {', '.join(known)}."
        )
    return known[accelerator]


def accelerator_of(node: NodeClass) -> str:
    """As Ray names it: from the selector, else from `accelerator` without its count (`8x H100`)."""
    wanted = node.label_selector.get(ACCELERATOR_LABEL, "")
    named = wanted if wanted and wanted[0] not in "!i" else re.sub(r"^\d+\s*x\s*", "", node.accelerator)
    return "CPU" if named.lower() == "cpu" else named


def parse_machine(text: str) -> tuple[str, Machine]:
    """`CLASS=TYPE:CPUS:GPUS:MEMORY_GIB`. Raises ValueError."""
    found = re.fullmatch(r"([^=]+)=([^:]+):(\d+):(\d+):(\d+)", text)
    if found is None:
        raise ValueError(f"{text!r} is not CLASS=TYPE:CPUS:GPUS:MEMORY_GIB, for example l4=g6.2xlarge:8:1:32")
    node_class, instance_type, cpus, gpus, memory_gib = found.groups()
    return node_class, _machine(instance_type, int(cpus), int(gpus), int(memory_gib))
