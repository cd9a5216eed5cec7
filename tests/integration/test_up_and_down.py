"""`sprat up` from outside: interrupted, killed, with a fleet that cannot be placed, twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deployments.free_port import free_port
from deployments.state_folder import StateFolder
from tests.configs import simulated

pytestmark = pytest.mark.integration


@dataclass
class CommandLine:
    folder: Path
    environment: dict[str, str]

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.folder / "state")

    def config(self, **changes: Any) -> str:
        file = self.folder / "cluster.yaml"
        raw = simulated(gateway__port=int(self.environment["PORT"]), **changes)
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        return str(file)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "deployments.cli.main", "--state", str(self.state.path), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ours(self) -> list[psutil.Process]:
        """Every process whose command line names our state or runtime folder, and what descends from it."""
        marks = (str(self.state.path), str(self.state.runtime))
        roots = [
            each
            for each in psutil.process_iter()
            if any(mark in part for mark in marks for part in _words(each))
        ]
        descendants = [child for root in roots for child in _children(root)]
        return [each for each in {*roots, *descendants} if each.pid != os.getpid() and _alive(each)]

    def until_nothing_runs(self, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while left := self.ours():
            assert time.monotonic() < deadline, [" ".join(_words(each))[:200] for each in left]
            time.sleep(0.3)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture
def sprat() -> Iterator[CommandLine]:
    folder = Path(tempfile.mkdtemp(prefix="sprat-up-", dir="/tmp"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    line = CommandLine(folder, environment | {"PORT": str(free_port())})
    yield line
    line.run("down")
    line.until_nothing_runs()
    shutil.rmtree(folder, ignore_errors=True)


def until_phase(sprat: CommandLine, phase: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while sprat.state.read_observed().get("phase") != phase:
        assert time.monotonic() < deadline, f"never {phase}: {sprat.state.read_observed()}"
        time.sleep(0.1)


def test_up_status_down(sprat: CommandLine) -> None:
    up = sprat.run("up", sprat.config(), "--json")
    assert up.returncode == 0, up.stderr

    started = json.loads(up.stdout)
    assert [call["tier"] for call in started["examples"]] == ["small", "large"]
    status = json.loads(sprat.run("status", "--json").stdout)
    assert status["ready"]
    assert {pool["name"]: pool["ready"] for pool in status["pools"]} == {"specialist": 1, "reserve": 1}
    replica = status["pools"][0]["replicas"][0]
    assert replica["simulated"]
    assert replica["adapters"] == [
        {"id": "intent@1", "state": "loaded", "detail": ""},
        {"id": "intent@2", "state": "loaded", "detail": ""},
    ]
    assert "specialist" in sprat.run("status").stdout
    assert sprat.run("logs", "supervisor").returncode == 0
    assert sprat.run("logs", "specialist").returncode == 0
    assert sprat.ours()
    pids = {each.pid for each in sprat.ours()}
    listening = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    outside = [each for each in listening if each.pid in pids and not each.laddr.ip.endswith("127.0.0.1")]
    assert outside == [], "everything listens on loopback"

    assert sprat.run("down").returncode == 0

    sprat.until_nothing_runs(5)
    assert not sprat.state.runtime.exists()
    assert json.loads(sprat.run("status", "--json").stdout)["phase"] == "down"


def test_down_lets_a_running_call_end(sprat: CommandLine) -> None:
    slow = {"base_ttft_ms": 1, "prefill_tokens_per_s": 1e6, "decode_tokens_per_s": 25}
    up = sprat.run("up", sprat.config(pools__specialist__simulated=slow), "--json", "--no-examples")
    assert up.returncode == 0, up.stderr
    started = json.loads(up.stdout)
    request = urllib.request.Request(
        started["endpoint"] + "/chat/completions",
        data=json.dumps(
            {"model": "small", "max_tokens": 150, "messages": [{"role": "user", "content": "hi"}]}
        ).encode(),
        headers={"authorization": f"Bearer {started['api_key']}"},
    )

    def call() -> int:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["usage"]["completion_tokens"]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call)
        time.sleep(1)
        down = sprat.run("down")

    assert answer.result() == 150
    assert down.returncode == 0, down.stderr
    assert "did not shut down in order" not in sprat.state.supervisor_log.read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("phase", ["starting Ray", "deploying"])
def test_a_start_that_is_cut_short_leaves_nothing_and_is_resumed(
    sprat: CommandLine, how: signal.Signals, phase: str
) -> None:
    config = sprat.config()
    up = sprat.start("up", config, "--no-examples")
    until_phase(sprat, phase)

    up.send_signal(how)

    up.wait(90)
    assert up.returncode != 0
    sprat.until_nothing_runs()
    if phase == "deploying":
        again = sprat.run("up", config, "--json")
        assert again.returncode == 0, again.stderr


def test_a_killed_supervisor_takes_everything_with_it(sprat: CommandLine) -> None:
    assert sprat.run("up", sprat.config(), "--no-examples").returncode == 0
    record = sprat.state.read_supervisor()
    assert record is not None

    os.kill(record["pid"], signal.SIGKILL)

    sprat.until_nothing_runs()
    assert json.loads(sprat.run("status", "--json").stdout)["phase"] == "down"


def test_a_killed_valkey_is_started_again(sprat: CommandLine) -> None:
    assert sprat.run("up", sprat.config(), "--no-examples").returncode == 0
    valkey = next(each for each in sprat.ours() if "valkey-server" in " ".join(_words(each)))

    valkey.kill()

    deadline = time.monotonic() + 20
    while True:
        status = json.loads(sprat.run("status", "--json").stdout)
        if status["ready"] and status["redis"]["state"] == "ok":
            break
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


def test_a_fleet_that_no_node_can_hold_says_so_and_leaves_nothing(sprat: CommandLine) -> None:
    config = sprat.config(
        node_classes__big__label_selector={"sprat.node": "gigantic"}, node_classes__big__fallbacks=[]
    )

    up = sprat.run("up", config)

    assert up.returncode == 1
    assert "no node matches pool 'reserve'" in up.stderr
    assert "ray start --labels" in up.stderr
    sprat.until_nothing_runs()


def test_a_pool_whose_engine_cannot_start_says_why(sprat: CommandLine) -> None:
    """A real vLLM pool over a folder without weights: refused before anything starts."""
    empty = sprat.folder / "empty"
    empty.mkdir()
    config = sprat.config(
        pools__reserve__engine="vllm",
        pools__reserve__simulated=None,
        base_models__huge__source=f"folder:{empty}",
    )

    up = sprat.run("up", config)

    assert up.returncode == 1
    assert str(empty) in up.stderr
    sprat.until_nothing_runs(1)
