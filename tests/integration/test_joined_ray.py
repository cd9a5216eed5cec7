"""A Ray cluster that others started: `sprat up --address` and `serve deploy` on several raylets, with token
authentication. The tests run in order: each finds what the one before left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from deployments.free_port import free_port
from deployments.valkey import start_server, stop_server
from tests.integration.test_up_and_down import CommandLine

pytestmark = pytest.mark.integration

MEMORY = {"object_store_memory": 80 * 2**20}
HELLO: list[Any] = [{"role": "user", "content": "hello there, how are you?"}]
NODE_LOST_S = 60.0
"""Ray notices the loss after five health checks, one a second here; then Serve starts anew."""


@dataclass
class JoinedRay:
    cluster: Any
    cheap: Any
    """The raylet that the small pool is pinned to."""
    dashboard: str
    sprat: CommandLine
    key: str = ""
    seen: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def config(self, **changes: Any) -> str:
        return self.sprat.config(
            **{
                "node_classes__cheap__fallbacks": [{"sprat.node": "spare"}],
                "node_classes__big__fallbacks": [],
                "pools__specialist__replicas": 2,
                "pools__specialist__simulated": {
                    "base_ttft_ms": 1,
                    "prefill_tokens_per_s": 1e6,
                    "decode_tokens_per_s": 100,
                },
                **changes,
            }
        )

    def client(self) -> openai.OpenAI:
        port = self.sprat.environment["PORT"]
        return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=self.key, max_retries=0)

    def pools(self) -> dict[str, list[dict[str, Any]]]:
        """Pool → its ready replicas."""
        status = json.loads(self.sprat.run("status", "--json").stdout)
        return {
            pool["name"]: [each for each in pool["replicas"] if each["state"] == "ready"]
            for pool in status["pools"]
        }

    def applications(self) -> set[str]:
        """What Serve runs, as its own command line says it."""
        told = self.serve("status").stdout
        return set((yaml.safe_load(told) or {}).get("applications") or {})

    def serve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = str(Path(sys.executable).parent / "serve")
        return subprocess.run(
            [command, *arguments, "--address", self.dashboard],
            env=self.sprat.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )


@pytest.fixture(scope="module")
def joined() -> Iterator[JoinedRay]:
    """A head without processors, raylets labelled cheap, spare and big, a Valkey, a SQLite file: all on one
    machine, so that unix socket and file mean the same on each node."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="sprat-join-", dir="/tmp"))
    (folder / "valkey").mkdir()
    valkey = start_server(folder / "valkey.sock", folder / "valkey")
    port, dashboard_port = free_port(), free_port()
    secrets = {
        "REDIS_URL": f"unix://{folder / 'valkey.sock'}",
        "SPRAT_STORE_URL": f"sqlite:///{folder / 'store.sqlite'}",
        "SPRAT_GATEWAY_TOKEN": "t" * 64,
        "SPRAT_PEPPER": "ab" * 32,
        "SPRAT_STATE": str(folder / "state"),
        # Ray's own patience; that of a laptop is longer (deployments/ray_cluster.py).
        "RAY_health_check_failure_threshold": "5",
        "RAY_health_check_period_ms": "1000",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)  # raylets hand their environment to replicas
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": dashboard_port,
                **MEMORY,
            },
        )
        cheap, *_ = [
            cluster.add_node(num_cpus=2, labels={"sprat.node": label}, **MEMORY)
            for label in ("cheap", "spare", "big")
        ]
        sprat = CommandLine(folder, dict(os.environ) | {"PORT": str(port)})
    yield JoinedRay(cluster, cheap, f"http://127.0.0.1:{dashboard_port}", sprat)
    sprat.run("down")
    cluster.shutdown()
    stop_server(valkey)
    shutil.rmtree(folder, ignore_errors=True)


def test_pools_run_where_their_labels_say(joined: JoinedRay) -> None:
    up = joined.sprat.run("up", joined.config(), "--address", joined.address, "--json")

    assert up.returncode == 0, up.stderr
    started = json.loads(up.stdout)
    joined.key = started["api_key"]
    assert [call["tier"] for call in started["examples"]] == ["small", "large"]
    where = {pool: {each["node"] for each in replicas} for pool, replicas in joined.pools().items()}
    assert where == {"specialist": {"cheap"}, "reserve": {"big"}}
    assert not joined.sprat.state.ray_folder.exists(), "no Ray of our own"


def test_a_second_sprat_does_not_replace_the_first(joined: JoinedRay) -> None:
    folder = joined.sprat.folder / "second"
    folder.mkdir()
    second = CommandLine(folder, joined.sprat.environment | {"PORT": str(free_port())})

    up = second.run("up", second.config(), "--address", joined.address)

    assert up.returncode == 1
    assert "already runs gateway, pool-reserve, pool-specialist" in up.stderr
    assert joined.applications() == {"gateway", "pool-reserve", "pool-specialist"}


def test_a_lost_node_moves_its_replicas_to_the_fallback_and_calls_go_on(joined: JoinedRay) -> None:
    answered: list[str] = []
    failed: list[str] = []
    stop = threading.Event()

    def call() -> None:
        with joined.client() as client:
            while not stop.is_set():
                try:
                    raw = client.chat.completions.with_raw_response.create(
                        model="auto", messages=HELLO, max_tokens=4, metadata={"task": "classify"}
                    )
                    answered.append(raw.headers["x-sprat-tier"])
                except openai.APIError as error:
                    failed.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        joined.cluster.remove_node(joined.cheap, allow_graceful=False)
        deadline = time.monotonic() + NODE_LOST_S
        while {each["node"] for each in joined.pools()["specialist"]} != {"spare"}:
            assert time.monotonic() < deadline, joined.pools()
            time.sleep(0.5)
    finally:
        stop.set()
        caller.join()

    assert not failed, "calls fall back to the large tier while the small one has no replica"
    assert set(answered) == {"small", "large"}
    joined.cluster.add_node(num_cpus=2, labels={"sprat.node": "cheap"}, **MEMORY)


def test_the_fleet_outlives_its_supervisor_and_down_still_removes_it(joined: JoinedRay) -> None:
    record = joined.sprat.state.read_supervisor()
    assert record is not None
    os.kill(record["pid"], signal.SIGKILL)

    with joined.client() as client:
        assert client.chat.completions.create(model="small", messages=HELLO, max_tokens=2).usage
    down = joined.sprat.run("down")

    assert down.returncode == 0, down.stderr
    assert "killed supervisor" in down.stdout
    assert joined.applications() == set()


def test_down_lets_running_streams_end_and_leaves_the_ray_of_others_alone(joined: JoinedRay) -> None:
    up = joined.sprat.run("up", joined.config(), "--address", joined.address, "--json", "--no-examples")
    assert up.returncode == 0, up.stderr
    joined.key = json.loads(up.stdout)["api_key"]

    with joined.client() as client:
        stream = client.chat.completions.create(model="small", messages=HELLO, max_tokens=150, stream=True)
        next(iter(stream))
        down = subprocess.Popen(joined.sprat.command("down"), env=joined.sprat.environment)
        pieces = [each for each in stream if each.choices and each.choices[0].delta.content]

    assert len(pieces) >= 149
    assert down.wait(60) == 0
    assert joined.applications() == set(), "and Serve itself still answers"


def test_a_rendered_serve_config_is_deployed_by_rays_own_command(joined: JoinedRay) -> None:
    target = joined.sprat.folder / "serve.yaml"
    rendered = joined.sprat.run(
        "render", "serve", joined.config(gateway__node_class="big"), "-o", str(target)
    )
    assert rendered.returncode == 0, rendered.stderr

    joined.serve("deploy", str(target))
    created = joined.sprat.run("keys", "create", "--tenant", "t", "--name", "n", "--json")
    joined.key = json.loads(created.stdout)["api_key"]
    deadline = time.monotonic() + 60
    while True:
        try:
            with joined.client() as client:
                raw = client.chat.completions.with_raw_response.create(
                    model="small", messages=HELLO, max_tokens=2
                )
            break
        except (openai.APIConnectionError, openai.InternalServerError):
            assert time.monotonic() < deadline, joined.serve("status").stdout
            time.sleep(0.5)

    assert raw.headers["x-sprat-replica"].startswith("specialist-")
    joined.serve("shutdown", "-y")
