"""Ray Serve's own ingress, fast (HAProxy, THROUGHPUT_OPTIMIZED) and as it comes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import psutil

from deployments.bench.gateway_systems.server_process import ServerProcess, server_process
from deployments.bench.gateway_systems.system import Bench, RunningSystem
from deployments.free_port import free_port
from deployments.ray_cluster import ray_environment
from deployments.state_folder import StateFolder

IN_THE_PATH = ("haproxy", "ray::ServeReplica", "ray::ProxyActor", "ray::HAProxyManager")
"""Of Ray's processes, those that requests pass through or that belong to the proxy. The rest (raylet, GCS,
controller) is not counted against it."""

SETTLED_S = 5.0


@asynccontextmanager
async def ray_serve(
    bench: Bench, *, name: str = "ray-serve", fast: bool = True
) -> AsyncIterator[RunningSystem]:
    state = StateFolder(bench.folder / name)
    state.make()
    state.secrets()
    state.make_runtime()
    port = free_port()
    environment = dict(os.environ) | ray_environment(state)
    if fast:
        environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
    command = [
        *(sys.executable, "-m", "deployments.bench.gateway_systems.ray_ingress"),
        *(str(port), bench.stub_url, str(state.ray_folder)),
    ]
    try:
        async with server_process(
            command,
            log=bench.folder / f"{name}.log",
            cores=bench.pinning.systems,
            environment=environment,
        ) as server:
            url = f"http://127.0.0.1:{port}"
            await server.until_answering(url, "none", "at-once")
            pids = await _settled(server)
            yield RunningSystem(
                name,
                url,
                "none",
                "at-once",
                "paced",
                pids=pids,
                other_pids=tuple(pid for pid in server.pids() if pid not in pids),
                pause=True,  # its daemons take a tenth of a core all the time
                versions=(("ray", version("ray")),),
            )
    finally:
        state.remove_runtime()


async def _settled(server: ServerProcess) -> tuple[int, ...]:
    """The processes in the path, once they are the same for a while: HAProxy is started anew when Serve tells
    it of the replica, and the old one ends."""
    pids, same_since_s = _in_the_path(server), time.monotonic()
    while time.monotonic() - same_since_s < SETTLED_S:
        await asyncio.sleep(0.5)
        if (now := _in_the_path(server)) != pids:
            pids, same_since_s = now, time.monotonic()
    return pids


def _in_the_path(server: ServerProcess) -> tuple[int, ...]:
    return tuple(pid for pid in server.pids() if _is_in_the_path(pid))


def _is_in_the_path(pid: int) -> bool:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
    return bool(command) and Path(command[0]).name.startswith(IN_THE_PATH)
