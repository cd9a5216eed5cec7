"""What must hold before sprat deploys onto a Ray cluster of others. Each refusal says what to do."""

from __future__ import annotations

from collections.abc import Collection

from cluster.config import ClusterConfig
from cluster.errors import StartError
from cluster.placement.nodes import matches
from cluster.types import NodeState
from deployments.ray_cluster import hosts, is_loopback


def check_shared(config: ClusterConfig, nodes: Collection[NodeState], redis_url: str, store_url: str) -> None:
    """Redis, SQL store and gateway address must mean the same on every machine. One machine may keep all of
    it to itself. Raises StartError with every reason."""
    machines = hosts(nodes)
    if len(machines) == 1:
        return
    count = f"the Ray cluster has {len(machines)} machines ({', '.join(machines)})"
    problems: list[str] = []
    if not redis_url:
        problems.append(
            f"{count}, and the embedded Valkey listens on a unix socket of this one: set REDIS_URL to a "
            "Redis 7 or Valkey that all of them reach (rediss://USER:PASSWORD@HOST:PORT)."
        )
    elif redis_url.startswith(("unix://", "/")):
        problems.append(f"{count}, and REDIS_URL is a unix socket of this one: use rediss://…")
    if store_url.startswith("sqlite"):
        problems.append(
            f"{count}, and the SQL store is a SQLite file on this one: set SPRAT_STORE_URL to a PostgreSQL "
            "that all of them reach (postgresql://USER:PASSWORD@HOST/DATABASE)."
        )
    if config.gateway.node_class is not None and is_loopback(config.gateway.host):
        problems.append(
            f"{count}, gateways run on node class {config.gateway.node_class!r} and listen on "
            f"{config.gateway.host}, which only that machine reaches: set gateway.host to 0.0.0.0, and "
            "gateway.tls or a proxy with TLS before it."
        )
    if problems:
        raise StartError(" ".join(problems))


def gateway_address(config: ClusterConfig, nodes: Collection[NodeState]) -> str:
    """A host at which clients find a gateway. With several gateway machines a load balancer belongs before
    them; this is the first of them. Raises StartError where no node may run one."""
    gateway = config.gateway
    if gateway.node_class is None:
        return gateway.host
    node = config.node_classes[gateway.node_class]
    for selector in (node.label_selector, *node.fallbacks):
        for each in nodes:
            if matches(selector, each.labels):
                return each.address if gateway.host in ("0.0.0.0", "::") else gateway.host
    raise StartError(
        f"no node matches gateway.node_class {gateway.node_class!r}. "
        "Start one with its labels (ray start --labels)."
    )


def check_names(wanted: Collection[str], running: Collection[str]) -> None:
    """Serve would replace an application of the same name, whoever deployed it. Raises StartError."""
    taken = sorted(set(wanted) & set(running))
    if taken:
        raise StartError(
            f"Ray Serve already runs {', '.join(taken)} there. If that is another sprat, stop it first "
            "(`sprat down` with its state folder); else remove it with `serve shutdown`."
        )
