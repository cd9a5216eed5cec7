"""The life that all engine replicas share: directory entry, heartbeat, drain, end.

A subclass starts its engine on a port of its own (`start_engine`), says whether it lives
(`engine_failure`) and stops it (`stop_engine`). Ray Serve starts, pins, heals and scales the replicas; no
request passes through Serve: gateways find the replica in the directory and speak HTTP to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import psutil
import ray

from cluster.clock import SystemClock
from cluster.config import PoolConfig
from cluster.errors import SchedulerUnavailable, StartError
from cluster.placement.memory import memory_problem
from cluster.placement.nodes import pool_gpus
from cluster.scheduler.desired_sets import DesiredSets
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import HEARTBEAT_PERIOD_S
from cluster.types import ReplicaPhase, ReplicaState
from deployments.residency.engine import AdapterEngine, AdapterNotLoaded
from deployments.residency.files import RegistryFiles
from deployments.residency.residency import AdapterResidency
from deployments.runtime import Runtime
from deployments.serve_address import keep_serve_on_node_address

logger = logging.getLogger("ray.serve")

SHORTEST_BEAT_S = 0.05
"""Adapters that come and go one after the other are told together."""

DRAIN_S = 30.0
"""Longest wait for running requests when Serve stops the replica."""


class EngineReplica:
    """Serve calls the async constructor, `check_health` and the async destructor."""

    kernels = "none"
    warning = ""
    """What an operator should know about a replica that is ready all the same; shown in `sprat status`."""
    simulated = False

    async def __init__(self, pool_name: str, runtime: Runtime) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_serve_on_node_address()
        self.pool_name = pool_name
        self.runtime = runtime
        self.pool: PoolConfig = runtime.config.pools[pool_name]
        self._scheduler: RedisScheduler = runtime.scheduler()
        self._desired = DesiredSets(runtime.redis())
        self._residency: AdapterResidency | None = None
        self._state = ReplicaState(
            replica_id=f"{pool_name}-{secrets.token_hex(4)}",
            pool=pool_name,
            phase=ReplicaPhase.STARTING,
            node=_node_name(),
            pid=os.getpid(),
            epoch=SystemClock().now_ms(),
            max_concurrency=self.pool.max_concurrency,
            max_outstanding_tokens=self.pool.max_outstanding_tokens,
            simulated=self.simulated,
            kernels=self.kernels,
        )
        self._loop_of_serve = asyncio.get_running_loop()
        self._is_changed = asyncio.Event()
        self._heartbeat = asyncio.create_task(self._beat())
        try:
            self._check_memory()
            self._set(phase=ReplicaPhase.LOADING, detail=f"loading {self.pool.base_model}")
            address = await self.start_engine()
        except Exception as error:
            self._set(phase=ReplicaPhase.FAILED, detail=_one_line(error))
            await self._tell()
            self._heartbeat.cancel()
            raise
        self._set(
            phase=ReplicaPhase.READY,
            detail=self.warning,
            address=address,
            kernels=self.kernels,
        )
        await self._tell()

    # For the subclasses.

    async def start_engine(self) -> str:
        """Returns `host:port`. Raises with a sentence for the operator."""
        raise NotImplementedError

    def engine_failure(self) -> str | None:
        """Why the engine is dead, or None while it lives. Called every second; must not block."""
        raise NotImplementedError

    async def stop_engine(self) -> None:
        raise NotImplementedError

    def listen_host(self) -> str:
        """The node's address inside the cluster, never all interfaces: loopback on a laptop, the private
        interface that Ray uses elsewhere."""
        host: str = ray.util.get_node_ip_address()
        return host

    async def start_residency(self, engine: AdapterEngine, base: Path | None) -> AdapterResidency:
        """To be called in the engine's event loop, before the first call; `base` is the folder of the base
        model's weights. Raises StartError for a pinned adapter that cannot be loaded."""
        residency = AdapterResidency(
            engine,
            await RegistryFiles.of(self.runtime, self.pool_name, base),
            room=self.pool.adapters_on_host,
            pinned=self.pool.adapters,
            changed=self._tell_soon,
        )
        try:
            await residency.hold(self.pool.adapters)
        except AdapterNotLoaded as error:
            raise StartError(f"{error} Check the adapter's files and its rank.") from error
        self._looking = asyncio.create_task(residency.keep_looking())
        self._residency, self._loop_of_engine = residency, asyncio.get_running_loop()
        return residency

    def report(self, detail: str) -> None:
        """Show progress of loading in `sprat status`."""
        self._set(detail=detail)

    # For Ray Serve.

    def check_health(self) -> None:
        failure = self.engine_failure() if self._state.phase is ReplicaPhase.READY else None
        if failure is not None:
            raise RuntimeError(f"engine of {self._state.replica_id} is dead: {failure}")
        if self._heartbeat.done():
            raise RuntimeError(f"{self._state.replica_id} has no heartbeat any more")

    def where(self) -> dict[str, str]:
        """Node and address, for tests and `sprat status`."""
        return {"id": self._state.replica_id, "node": self._state.node, "address": self._state.address}

    async def __del__(self) -> None:
        if not hasattr(self, "_state") or self._state.phase is ReplicaPhase.FAILED:
            return
        self._set(phase=ReplicaPhase.DRAINING)
        await self._tell()
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and await self._outstanding() > 0:  # noqa: ASYNC110 (in Redis)
            await asyncio.sleep(0.2)
        self._heartbeat.cancel()
        await self.stop_engine()
        try:
            await self._scheduler.deregister(self._state)
            await self._scheduler.close()
        except SchedulerUnavailable:
            logger.warning("Redis is gone: %s ends without deregistering", self._state.replica_id)

    # Own life.

    async def _beat(self) -> None:
        while True:
            failure = self.engine_failure() if self._state.phase is ReplicaPhase.READY else None
            if failure is not None:
                await self._die(failure)
            try:
                await self._tell()
                await self._obey()
            except Exception:  # a loop that ends silently would take this replica out for ever
                logger.exception("heartbeat of %s failed", self._state.replica_id)
            await self._next_beat()

    def _tell_soon(self) -> None:
        """From any thread."""
        self._loop_of_serve.call_soon_threadsafe(self._is_changed.set)

    async def _next_beat(self) -> None:
        """After a second; sooner when an adapter came or went, so that calls find it."""
        await asyncio.sleep(SHORTEST_BEAT_S)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_changed.wait(), HEARTBEAT_PERIOD_S - SHORTEST_BEAT_S)
        self._is_changed.clear()

    async def _tell(self) -> None:
        """One heartbeat. A Redis that is away is no reason to die: the next beat tries again."""
        residency = self._residency
        if residency is not None:
            self._set(
                adapters=residency.states(),
                adapter_problems=residency.problems(),
                adapter_uses=residency.uses(),
            )
        try:
            await self._scheduler.heartbeat(replace(self._state, rss_bytes=_tree_rss_bytes()))
        except SchedulerUnavailable:
            logger.warning("heartbeat of %s did not reach Redis", self._state.replica_id)

    async def _obey(self) -> None:
        """Take the desired set that the controller wrote for this replica."""
        residency = self._residency
        if residency is None or not self.pool.adapter_slots:
            return
        try:
            desired = await self._desired.read(self._state.replica_id)
        except SchedulerUnavailable:
            return  # what is here stays
        if desired is not None:
            self._loop_of_engine.call_soon_threadsafe(residency.want, desired)

    async def _die(self, failure: str) -> NoReturn:
        """Leave the directory first, so that no further request comes, then let Serve start another."""
        logger.error("engine of %s died: %s", self._state.replica_id, failure)
        self._set(phase=ReplicaPhase.FAILED, detail=failure)
        await self._tell()
        os._exit(1)

    async def _outstanding(self) -> int:
        try:
            await self._scheduler.reap([self.pool_name])  # leases of gateways that are gone
            load = await self._scheduler.pool_load(self.pool_name)
        except SchedulerUnavailable:
            return 0
        return sum(each.load_requests for each in load.replicas if each.replica_id == self._state.replica_id)

    def _set(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]

    def _check_memory(self) -> None:
        if pool_gpus(self.pool) > 0:
            return  # vLLM itself measures the GPU before it allocates
        model = self.runtime.config.base_models[self.pool.base_model]
        available_bytes = psutil.virtual_memory().available
        problem = memory_problem(
            self.pool_name, self.pool, model, available_bytes, f"node {self._state.node}"
        )
        if problem is not None:
            raise MemoryError(problem)


def _node_name() -> str:
    """The node's `sprat.node` label where it has one, else its Ray node id, shortened."""
    context = ray.get_runtime_context()
    labels = context.get_node_labels() or {}
    name: str = labels.get("sprat.node") or context.get_node_id()[:12]
    return name


def _tree_rss_bytes() -> int:
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # ended meanwhile, or not ours to look at
            continue
    return total


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


if sys.platform != "linux":
    raise ImportError("engine replicas need Linux (pidfd, /proc)")
