"""A node that will go: Ray is told, so that Serve starts its replicas elsewhere and then lets
them end their calls.

Clouds that give a spot notice are heard by Ray's own autoscaler (KubeRay's too); this is for all others.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import StartError

TIMEOUT_S = 60.0


def node_named(name: str, nodes: Sequence[Mapping[str, Any]]) -> str:
    """The id of the node that has this `sprat.node` label, or whose id begins so. Raises StartError."""

    def called(node: Mapping[str, Any]) -> str:
        return str(node["labels"].get("sprat.node") or node["id"][:12])

    found = [node["id"] for node in nodes if called(node) == name or node["id"].startswith(name)]
    if not found:
        known = ", ".join(sorted(map(called, nodes))) or "none"
        raise StartError(f"there is no node {name!r}. These are there: {known}.")
    if len(found) > 1:
        raise StartError(f"{len(found)} nodes are called {name!r}. Name one by its id (`sprat status`).")
    if len(nodes) == 1:
        raise StartError(f"{name!r} is the only node: its replicas cannot go elsewhere. `sprat down` stops.")
    return str(found[0])


def drain_node(address: str, node_id: str, deadline_s: int, environment: Mapping[str, str]) -> None:
    """By Ray's own command, with the token that `environment` names. Raises StartError."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
        *("--address", address, "--node-id", node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "sprat drain"),
        *("--deadline-remaining-seconds", str(deadline_s)),
    ]
    try:
        told = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartError(f"Ray at {address} did not answer within {TIMEOUT_S:g} s.") from error
    if told.returncode != 0:
        lines = [line.strip() for line in told.stderr.splitlines() if line.strip()]
        raise StartError(f"Ray refused to drain the node: {lines[-1] if lines else 'it does not say why'}")
