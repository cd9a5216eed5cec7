"""Two hosts that meet over a network only: this machine, and a network namespace with an address of its own.

What crosses it: Ray, guarded by its token; heartbeats to Redis, guarded by a password; calls to the engine,
guarded by the gateway token.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest
import yaml

from cluster.config import ClusterConfig
from cluster.scheduler.scheduler import DEAD_AFTER_MS
from cluster.store import KeyStore, open_store
from cluster.types import ReplicaState
from deployments.engine_client import SILENT_PEER_S
from deployments.free_port import free_port
from deployments.render.serve import serve_config
from deployments.runtime import Runtime
from deployments.valkey import find_server_binary
from tests.configs import config_of, simulated
from tests.integration.conftest import Fleet
from tests.links import Link, second_host, until_listening

pytestmark = pytest.mark.integration

HELLO: list[Any] = [{"role": "user", "content": "hello there, how are you?"}]
OBJECT_STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with second_host() as made:
        yield made


@dataclass(frozen=True)
class TwoHosts:
    fleet: Fleet
    link: Link

    def replica(self, pool: str) -> ReplicaState:
        (found,) = self.fleet.replicas(pool)
        return found

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.fleet.url, api_key=self.fleet.key, max_retries=0, timeout=30)

    def call(self) -> tuple[str, float]:
        """The replica that answered, and how many seconds it took."""
        started_s = time.monotonic()
        with self.client() as client:
            raw = client.chat.completions.with_raw_response.create(
                model="small", messages=HELLO, max_tokens=3
            )
        return raw.headers["x-sprat-replica"], time.monotonic() - started_s


def config_here_and_there() -> ClusterConfig:
    """The small tier has a pool on each host, the one far away is the cheaper one: calls go there."""
    raw = simulated(
        gateway__port=free_port(),
        gateway__node_class="big",
        node_classes__cheap__label_selector={"sprat.node": "far"},
        node_classes__cheap__fallbacks=[],
        node_classes__big__label_selector={"sprat.node": "near"},
        node_classes__big__fallbacks=[],
    )
    raw["pools"] = {
        "far": raw["pools"]["specialist"],
        "near": raw["pools"]["specialist"] | {"node_class": "big"},
        "reserve": raw["pools"]["reserve"],
    }
    return config_of(raw)


@pytest.fixture(scope="module")
def hosts(link: Link) -> Iterator[TwoHosts]:
    folder = Path(tempfile.mkdtemp(prefix="sprat-net-", dir="/tmp"))
    config = config_here_and_there()
    # Set for clusters on loopback, where Ray would refuse a second host.
    inherited = {name: value for name, value in os.environ.items() if "WINDOWS_OR_OSX" not in name}
    environment = inherited | {
        "REDIS_URL": f"redis://:{secrets.token_hex(16)}@{link.here}:{free_port()}",
        "SPRAT_STORE_URL": f"sqlite:///{folder / 'store.sqlite'}",  # only gateways open it, on one host
        "SPRAT_GATEWAY_TOKEN": "t" * 64,
        "SPRAT_PEPPER": "ab" * 32,
        "SPRAT_STATE": str(folder / "state"),
    }
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        log = cleanup.enter_context((folder / "log").open("wb"))
        yield TwoHosts(
            start_fleet(link, config, folder, environment=environment, log=log, cleanup=cleanup), link
        )


def start_fleet(
    link: Link,
    config: ClusterConfig,
    folder: Path,
    *,
    environment: dict[str, str],
    log: IO[bytes],
    cleanup: ExitStack,
) -> Fleet:
    """A Redis and a Ray head here, a raylet there, the rendered Serve config on both."""
    redis = urlsplit(environment["REDIS_URL"])
    gcs_port, dashboard_port = free_port(), free_port()

    def start(command: list[str]) -> None:
        cleanup.callback(end, subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    tools = Path(sys.executable).parent
    node = [
        *(str(tools / "ray"), "start", "--block", "--disable-usage-stats"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
    ]
    start(
        [
            *(find_server_binary() or "valkey-server", "--bind", link.here, "--port", str(redis.port)),
            *("--requirepass", str(redis.password), "--save", "", "--dir", str(folder)),
        ]
    )
    start(
        [
            *(*node, "--head", "--node-ip-address", link.here, "--port", str(gcs_port), "--num-cpus", "1"),
            *("--labels", "sprat.node=near", "--dashboard-port", str(dashboard_port)),
            *("--ray-client-server-port", str(free_port()), "--temp-dir", str(folder / "ray")),
        ]
    )
    until_listening(link.here, gcs_port)
    far = ["--address", f"{link.here}:{gcs_port}", "--node-ip-address", link.there, "--num-cpus", "1"]
    start(link.inside([*node, *far, "--labels", "sprat.node=far"]))
    (folder / "serve.yaml").write_text(yaml.safe_dump(serve_config(config)))
    deploy = [str(tools / "serve"), "deploy", str(folder / "serve.yaml")]
    deploy += ["--address", f"http://127.0.0.1:{dashboard_port}"]
    deadline = time.monotonic() + 60
    while subprocess.run(deploy, env=environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(1)
    runtime = Runtime.from_environment(config, environment)
    key = KeyStore(open_store(runtime.store_url), runtime.pepper).create("tenant", "test")
    fleet = Fleet(runtime, f"http://127.0.0.1:{config.gateway.port}/v1", key, proxy_url="")
    for pool in config.pools:
        fleet.wait_for(pool, 1)
    while not fleet.gateways():
        assert time.monotonic() < deadline + 60, "no gateway listens"
        time.sleep(0.2)
    return fleet


def end(process: subprocess.Popen[bytes]) -> None:
    """`ray start --block` ends what it started; it is the parent of all of it."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=20)
    for each in left:
        each.kill()
    process.wait(5)


def test_a_replica_on_another_host_is_reached_at_its_address(hosts: TwoHosts) -> None:
    far = hosts.replica("far")

    assert far.address.startswith(f"{hosts.link.there}:")
    assert {hosts.call()[0] for _ in range(5)} == {far.replica_id}


def test_an_engine_listens_on_its_nodes_address_only_and_knows_the_gateway(hosts: TwoHosts) -> None:
    far = hosts.replica("far")
    sockets = subprocess.run(
        hosts.link.inside(["ss", "--listening", "--tcp", "--numeric", "--no-header"]),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    port = far.address.rpartition(":")[2]
    local = [line.split()[3] for line in sockets.splitlines()]
    listening = [address for address in local if address.endswith(f":{port}")]
    request = urllib.request.Request(
        f"http://{far.address}/v1/chat/completions", data=b"{}", headers={"authorization": "Bearer guessed"}
    )

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)

    assert listening == [far.address]
    assert refused.value.code in (401, 403)


def test_a_cut_link_costs_no_call(hosts: TwoHosts) -> None:
    """Nothing is closed when a host falls off the network: open connections are silent. Calls on their way
    there go elsewhere, and after DEAD_AFTER_MS none is sent there any more."""
    near = hosts.replica("near").replica_id
    hosts.link.cut()
    cut_s = time.monotonic()

    with ThreadPoolExecutor(4) as pool:
        during = list(pool.map(lambda _: hosts.call(), range(8)))
    time.sleep(max(0.0, cut_s + DEAD_AFTER_MS / 1000 + 1.5 - time.monotonic()))
    after = [hosts.call() for _ in range(10)]

    assert {replica for replica, _ in during + after} == {near}
    slowest_s = max(seconds for _, seconds in during)
    assert slowest_s < SILENT_PEER_S + hosts.fleet.runtime.config.gateway.connect_timeout_s + 3
    assert max(seconds for _, seconds in after) < 1, "nobody waits for the lost one any more"
    assert not hosts.fleet.replicas("far")
