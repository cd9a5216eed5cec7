"""A real local Ray with two raylets that stand for two kinds of nodes, and sprat deployed on it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from cluster.config import ClusterConfig
from cluster.scheduler.redis_connection import connect
from cluster.store import KeyStore, open_store, sqlite_url
from cluster.types import ReplicaPhase, ReplicaState
from deployments.free_port import free_port
from deployments.runtime import Runtime
from tests.configs import config_of, simulated
from tests.gateways import PEPPER, TOKEN


@dataclass
class Fleet:
    runtime: Runtime
    url: str
    key: str
    proxy_url: str
    """The route through Ray Serve's proxy."""

    def gateways(self) -> set[int]:
        """Processes that listen on the port of `url`."""
        port = urlsplit(self.url).port
        return {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid
        }

    def replicas(self, pool: str) -> list[ReplicaState]:
        async def ask() -> list[ReplicaState]:
            scheduler = self.runtime.scheduler()
            try:
                return list((await scheduler.pool_load(pool)).replicas)
            finally:
                await scheduler.close()

        return [each for each in asyncio.run(ask()) if each.phase is ReplicaPhase.READY]

    def leases(self) -> int:
        async def ask() -> int:
            scheduler = self.runtime.scheduler()
            try:
                return sum([(await scheduler.pool_load(pool)).leases for pool in self.runtime.config.pools])
            finally:
                await scheduler.close()

        return asyncio.run(ask())

    def wait_for(
        self, pool: str, count: int, *, without: str = "", timeout_s: float = 60
    ) -> list[ReplicaState]:
        """A dead replica's entry lives up to 3 s: `without` names the one that must be gone."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.replicas(pool)) != count or without in {each.replica_id for each in found}:
            assert time.monotonic() < deadline, f"{pool}: {found}"
            time.sleep(0.2)
        return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Head without CPUs for pools, one `cheap` raylet, one `big` one; token authentication as always. A
    `ray.cluster_utils.Cluster`, for tests that bring a node of their own."""
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **memory},
    )
    cluster.add_node(num_cpus=2, labels={"sprat.node": "cheap"}, **memory)
    cluster.add_node(num_cpus=2, labels={"sprat.node": "big"}, **memory)
    ray.init(address=cluster.address, namespace="sprat", log_to_driver=False, logging_level=logging.WARNING)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def lost_nodes_noticed(ray_cluster: Any) -> Iterator[None]:
    """The next module begins when Ray knows of the raylets that this one has killed: till then it would place
    replicas there."""
    import ray

    yield
    deadline = time.monotonic() + 120
    while sum(node["Alive"] for node in ray.nodes()) > len(ray_cluster.list_all_nodes()):
        assert time.monotonic() < deadline, ray.nodes()
        time.sleep(0.5)


@contextmanager
def deployed(config: ClusterConfig, valkey_url: str, folder: Path) -> Iterator[Fleet]:
    """On the Ray of the session, in an empty Redis, with a store and journals of its own below `folder`. All
    gateways listen."""
    from ray import serve

    from deployments import app

    async def empty() -> None:
        client = connect(valkey_url)
        await client.flushall()
        await client.aclose()

    asyncio.run(empty())
    own = Path(tempfile.mkdtemp(dir=folder))
    runtime = Runtime(
        config=config,
        redis_url=valkey_url,
        store_url=sqlite_url(own / "store.sqlite"),
        journal_folder=str(own / "journal"),
        gateway_token=TOKEN,
        pepper=PEPPER,
    )
    key = KeyStore(open_store(runtime.store_url), PEPPER).create("tenant", "test")
    for _ in app.deploy(runtime, app.ray_nodes()):
        pass
    gateway = config.gateway
    running = Fleet(
        runtime,
        f"http://127.0.0.1:{gateway.port}/v1",
        key,
        proxy_url=f"http://127.0.0.1:{gateway.serve_proxy_port}/v1",
    )
    deadline = time.monotonic() + 30
    while len(running.gateways()) < gateway.replicas:
        assert time.monotonic() < deadline, f"{gateway.replicas} gateways should listen"
        time.sleep(0.2)
    yield running
    serve.shutdown()
    until_serve_is_gone()


def until_serve_is_gone(within_s: float = 30) -> None:
    """Serve returns before its controller has died, and whoever starts Serve then is given the dying one."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            return
        time.sleep(0.2)
    raise TimeoutError(f"Serve's controller lives on after {within_s} s")


@pytest.fixture(scope="module")
def fleet(lost_nodes_noticed: None, valkey_url: str, short_folder: Path) -> Iterator[Fleet]:
    """Two gateways on one port, also behind Serve's proxy; two simulated pools: two replicas on the cheap
    node, one on the big one. No fallbacks: pinned."""
    config = config_of(
        simulated(
            gateway__port=free_port(),
            gateway__replicas=2,
            gateway__serve_proxy_port=free_port(),
            pools__specialist__replicas=2,
            pools__specialist__simulated={
                "base_ttft_ms": 1,
                "prefill_tokens_per_s": 1e6,
                "decode_tokens_per_s": 100,
            },
            node_classes__cheap__fallbacks=[],
            node_classes__big__fallbacks=[],
        )
    )
    with deployed(config, valkey_url, short_folder) as running:
        running.wait_for("specialist", 2)
        running.wait_for("reserve", 1)
        yield running
