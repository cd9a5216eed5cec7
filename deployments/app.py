"""Composition root: from the YAML to Ray Serve applications. The only place that wires objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve

from cluster.config import ClusterConfig, NodeClass, PoolConfig
from cluster.config.memory import replica_memory_bytes
from cluster.errors import SchedulerUnavailable, StartError
from cluster.placement.nodes import find_nodes, pool_gpus
from cluster.types import NodeState
from deployments.autoscaling import replica_count
from deployments.controller.replica import ControllerReplica
from deployments.engine_replica import DRAIN_S
from deployments.engine_sim import SimulatedReplica
from deployments.engine_upstream import UpstreamReplica
from deployments.engine_vllm import VllmReplica
from deployments.gateway.replica import DRAIN_S as GATEWAY_DRAIN_S
from deployments.gateway.replica import GatewayReplica
from deployments.runtime import Runtime

ENGINES = {"vllm": VllmReplica, "simulated": SimulatedReplica, "upstream": UpstreamReplica}
GATEWAY_APP = "gateway"
CONTROLLER_APP = "controller"
POOL_APP_PREFIX = "pool-"
ENTRY_TIMEOUT_S = 20.0


def application_names(config: ClusterConfig) -> tuple[str, ...]:
    """Of the Serve applications, the gateway's first."""
    controller = (CONTROLLER_APP,) if config.places_adapters else ()
    return (GATEWAY_APP, *controller, *(POOL_APP_PREFIX + name for name in config.pools))


def deploy(runtime: Runtime, nodes: Iterable[NodeState], gateway_node_id: str | None = None) -> Iterator[str]:
    """Hand the gateway and all pools to Serve, the smallest tier first; yields while it waits.

    Gateways run on `gateway_node_id`, unless the YAML gives them a node class.

    The next pool follows when the one before has taken its first step on a node (or after
    ENTRY_TIMEOUT_S): the engines of one CPU node load one after the other, and the small tier shall be the
    first of them.
    """
    config = runtime.config
    known = list(nodes)
    # Gateways and engines listen on ports of their own. Serve's proxy costs ten times as much per call: it is
    # there for those who ask for it, on the head node.
    proxy_port = config.gateway.serve_proxy_port
    if proxy_port is None:
        serve.start(proxy_location="Disabled")
        _run(gateway_application(runtime, gateway_node_id), GATEWAY_APP)
    else:
        serve.start(
            proxy_location="EveryNode", http_options={"host": config.gateway.host, "port": proxy_port}
        )
        _run(gateway_application(runtime, gateway_node_id), GATEWAY_APP, route_prefix="/")
    if config.places_adapters:
        _run(controller_application(runtime), CONTROLLER_APP)
    for name in sorted(config.pools, key=lambda pool: config.tiers.index(config.pools[pool].tier)):
        _run(pool_application(name, runtime, known), POOL_APP_PREFIX + name)
        if config.pools[name].min_replicas == 0:
            continue  # it sleeps
        deadline = time.monotonic() + ENTRY_TIMEOUT_S
        while time.monotonic() < deadline and not _has_entry(runtime, name):
            yield name
            time.sleep(0.3)


def _run(application: serve.Application, name: str, *, route_prefix: str | None = None) -> None:
    target = serve.RunTarget(target=application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def _has_entry(runtime: Runtime, pool: str) -> bool:
    async def ask() -> bool:
        scheduler = runtime.scheduler()
        try:
            return bool((await scheduler.pool_load(pool)).replicas)
        except SchedulerUnavailable:
            return False
        finally:
            await scheduler.close()

    return asyncio.run(ask())


def gateway_application(runtime: Runtime, node_id: str | None = None) -> serve.Application:
    by_proxy = runtime.config.gateway.serve_proxy_port is not None
    node_class = runtime.config.gateway.node_class
    placement: dict[str, Any] = {}
    if node_class is not None:
        placement = label_options(runtime.config.node_classes[node_class])
    elif node_id is not None:
        placement = {"label_selector": {"ray.io/node-id": node_id}}
    return (
        serve.deployment(serve.ingress()(GatewayReplica) if by_proxy else GatewayReplica)
        .options(
            name="gateway",
            num_replicas=runtime.config.gateway.replicas,
            ray_actor_options={"num_cpus": 0, **placement},
            max_constructor_retry_count=2,
            health_check_period_s=5,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=GATEWAY_DRAIN_S + 15,
        )
        .bind(runtime)
    )


def controller_application(runtime: Runtime) -> serve.Application:
    """For fleets with slots for adapters of the registry."""
    return (
        serve.deployment(ControllerReplica)
        .options(name="controller", ray_actor_options={"num_cpus": 0}, health_check_period_s=5)
        .bind(runtime)
    )


def pool_application(name: str, runtime: Runtime, nodes: Iterable[NodeState]) -> serve.Application:
    """One Serve deployment per pool."""
    pool = runtime.config.pools[name]
    node = runtime.config.node_classes[pool.node_class]
    return (
        serve.deployment(ENGINES[pool.engine])
        .options(
            name=name,
            **replica_count(name, runtime),
            max_constructor_retry_count=2,
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=DRAIN_S + 30,
            **placement_options(name, pool, node, nodes),
        )
        .bind(name, runtime)
    )


def placement_options(
    name: str, pool: PoolConfig, node: NodeClass, nodes: Iterable[NodeState]
) -> dict[str, Any]:
    """Where Ray may put a replica: label selector with soft fallbacks, or a placement group for tensor
    parallel pools. Placement groups know no fallback in Serve 2.60 (PLATFORM.md 1.4), so the selector
    that matches the nodes of today is taken."""
    if pool.tensor_parallel > 1:
        fit = find_nodes(name, pool, node, nodes)
        selector = dict(fit.selector if fit.selector is not None else node.label_selector)
        bundles = [{"CPU": max(pool.cpus / pool.tensor_parallel, 0.01), "GPU": 1.0}] * pool.tensor_parallel
        return {
            "ray_actor_options": {"num_cpus": 0},
            "placement_group_bundles": bundles,
            "placement_group_strategy": "STRICT_PACK",
            "placement_group_bundle_label_selector": [selector] * len(bundles) if selector else None,
        }
    return {"ray_actor_options": {"num_cpus": pool.cpus, "num_gpus": pool_gpus(pool), **label_options(node)}}


def label_options(node: NodeClass) -> dict[str, Any]:
    """Actor options for a node class: its selector, softly its fallbacks."""
    options: dict[str, Any] = {}
    if node.label_selector:
        options["label_selector"] = node.label_selector
    if node.fallbacks:
        options["fallback_strategy"] = [{"label_selector": selector} for selector in node.fallbacks]
    return options


def ray_nodes() -> list[NodeState]:
    """The nodes that live now."""
    return [
        NodeState(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            labels=dict(node.get("Labels") or {}),
            resources=dict(node.get("Resources") or {}),
            memory_bytes=int((node.get("Resources") or {}).get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def serve_states() -> dict[str, dict[str, Any]]:
    """Per pool: Serve's own view (`status`, `message`)."""
    states: dict[str, dict[str, Any]] = {}
    for app_name, app in serve.status().applications.items():
        deployments = list(app.deployments.values())
        message = " ".join([app.message, *(each.message for each in deployments)]).strip()
        states[app_name.removeprefix(POOL_APP_PREFIX)] = {"status": str(app.status), "message": message}
    return states


def unplaceable(config: ClusterConfig, nodes: Iterable[NodeState]) -> dict[str, str]:
    """Pools that no node can hold, with the sentence that says why."""
    known = list(nodes)
    reasons = {
        name: find_nodes(
            name,
            pool,
            config.node_classes[pool.node_class],
            known,
            # What a card has free, vLLM measures itself.
            memory_bytes=0
            if pool_gpus(pool) > 0
            else replica_memory_bytes(pool, config.base_models[pool.base_model]),
        ).why_not
        for name, pool in config.pools.items()
    }
    return {name: reason for name, reason in reasons.items() if reason}


class ApplicationArguments(BaseModel):
    """`args` of an application in a Serve config (`sprat render serve`)."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]
    """The cluster YAML as one object; it holds no secrets."""

    pool: str = ""


def build_gateway(raw: dict[str, Any]) -> serve.Application:
    """`import_path` of the gateway, called by Serve with `args`. Secrets come from the node's environment."""
    runtime, _ = _from_arguments(raw)
    return gateway_application(runtime)


def build_controller(raw: dict[str, Any]) -> serve.Application:
    """`import_path` of the controller."""
    runtime, _ = _from_arguments(raw)
    return controller_application(runtime)


def build_pool(raw: dict[str, Any]) -> serve.Application:
    """`import_path` of a pool."""
    runtime, pool = _from_arguments(raw)
    if pool not in runtime.config.pools:
        raise StartError(f"there is no pool {pool!r} in this config. Render it again.")
    return pool_application(pool, runtime, ray_nodes())


def _from_arguments(raw: dict[str, Any]) -> tuple[Runtime, str]:
    arguments = ApplicationArguments.model_validate(raw)
    return Runtime.from_environment(ClusterConfig.model_validate(arguments.config)), arguments.pool
