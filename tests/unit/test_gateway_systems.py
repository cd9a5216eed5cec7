"""What `sprat bench gateway` starts: cores, rivals' environments, processes, and what the load generator is
told. No rival is installed here."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from click.testing import CliRunner

from deployments.bench import gateway_bench
from deployments.bench.gateway_bench import Load
from deployments.bench.gateway_systems import rival_environment as environments
from deployments.bench.gateway_systems.idle import idle_cpu_percent
from deployments.bench.gateway_systems.names import DEFAULT_SYSTEMS, DIRECT, SYSTEMS
from deployments.bench.gateway_systems.pinning import choose_pinning, on_cores
from deployments.bench.gateway_systems.registry import STARTS
from deployments.bench.gateway_systems.rival_environment import (
    Rival,
    refuse_start_up_files,
    rival_environment,
)
from deployments.bench.gateway_systems.server_process import server_process
from deployments.bench.gateway_systems.system import RunningSystem, SystemUnavailable
from deployments.cli.main import sprat
from loadtest.bench_command import add_bench_gateway
from loadtest.systems import parse_system

RIVAL = Rival("example[proxy]", "1.2.3")


class TestPinning:
    @pytest.mark.parametrize(
        ("usable", "pin", "systems", "rest"),
        [
            ({0, 1}, True, {0}, {1}),
            ({2, 3, 7}, True, {2}, {3, 7}),
            ({0}, True, {0}, {0}),
            ({0, 1}, False, {0, 1}, {0, 1}),
        ],
    )
    def test_systems_get_one_core_where_there_are_two(self, usable, pin, systems, rest):
        chosen = choose_pinning(frozenset(usable), pin=pin)
        assert (chosen.systems, chosen.rest) == (systems, rest)
        assert (str(chosen) == "none") is (systems == rest)

    def test_a_child_inherits_the_cores_and_this_process_gets_its_own_back(self):
        before = os.sched_getaffinity(0)
        one = frozenset({max(before)})
        with on_cores(one):
            shown = subprocess.check_output(
                [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True
            )
        assert shown.strip() == str(set(one))
        assert os.sched_getaffinity(0) == before


class TestRivalEnvironment:
    def test_a_file_that_python_would_run_at_every_start_is_refused(self, tmp_path):
        packages = tmp_path / "lib" / "python3.11" / "site-packages"
        packages.mkdir(parents=True)
        (packages / "fine.py").touch()
        refuse_start_up_files(tmp_path)
        for name in ("helper.pth", "sitecustomize.py", "usercustomize.py"):
            (packages / name).touch()
            with pytest.raises(SystemUnavailable, match=name):
                refuse_start_up_files(tmp_path)
            (packages / name).unlink()

    def test_it_is_made_once(self, tmp_path, monkeypatch):
        made = []

        def install(rival, folder, _say):
            made.append(rival)
            folder.mkdir()
            return "[]"

        monkeypatch.setattr(environments, "_install", install)
        folders = {rival_environment(RIVAL, tmp_path, print) for _ in range(2)}
        assert folders == {tmp_path / "example-1.2.3"}
        assert made == [RIVAL]

    def test_half_an_environment_is_made_anew(self, tmp_path, monkeypatch):
        half = tmp_path / "example-1.2.3" / "half"
        half.mkdir(parents=True)
        monkeypatch.setattr(environments, "_install", lambda _rival, folder, _say: folder.mkdir() or "[]")
        rival_environment(RIVAL, tmp_path, print)
        assert not half.exists()

    def test_an_environment_that_was_tampered_with_later_is_refused_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environments, "_install", lambda _rival, folder, _say: folder.mkdir() or "[]")
        folder = rival_environment(RIVAL, tmp_path, print)
        (folder / "late.pth").touch()
        with pytest.raises(SystemUnavailable, match=r"late\.pth"):
            rival_environment(RIVAL, tmp_path, print)

    def test_what_cannot_be_installed_is_a_reason_and_no_crash(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        nowhere = Rival("sprat-no-such-package", "1")
        with pytest.raises(SystemUnavailable, match=r"cannot be installed: ERROR: No matching distribution"):
            rival_environment(nowhere, tmp_path, print)
        assert not (tmp_path / "sprat-no-such-package-1" / "packages.json").exists()


class TestServerProcess:
    @pytest.fixture
    def cores(self) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(0))

    async def test_its_children_end_with_it(self, tmp_path, cores):
        command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"]
        async with server_process(
            command, log=tmp_path / "log", cores=cores, environment=os.environ
        ) as server:
            while len(server.pids()) < 2:
                await asyncio.sleep(0.02)
            tree = [psutil.Process(pid) for pid in server.pids()]
        assert not any(process.is_running() for process in tree)

    async def test_one_that_ends_at_once_says_why(self, tmp_path, cores):
        command = [sys.executable, "-c", "raise SystemExit('no such model')"]
        async with server_process(command, log=tmp_path / "log", cores=cores, environment={}) as server:
            with pytest.raises(SystemUnavailable, match="code 1: no such model"):
                await server.until_answering("http://127.0.0.1:9", "key", "model")


class TestIdle:
    async def test_a_busy_process_is_seen(self):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # noqa: ASYNC220
        try:
            shown = await idle_cpu_percent(
                [
                    RunningSystem("quiet", "", "", "", "", pids=(2**22 + 1,)),
                    RunningSystem("busy", "", "", "", "", pids=(), other_pids=(busy.pid,)),
                ]
            )
        finally:
            busy.kill()
            busy.wait()
        assert shown["quiet"] == 0
        assert shown["busy"] > 10


class TestWhatTheLoadGeneratorIsTold:
    def test_a_system_survives_the_command_line(self):
        system = RunningSystem(
            *("sprat", "http://127.0.0.1:8000", "sk-x", "auto", "slow"),
            pids=(1, 2),
            store_pids=(3,),
            other_pids=(4,),
            versions=(("sprat", "0.1.0"),),
        )
        flag, text, *more = system.flags()
        read = parse_system(text)
        assert flag == "--system"
        assert (read.name, read.url, read.api_key) == ("sprat", "http://127.0.0.1:8000", "sk-x")
        assert (read.model, read.model_paced) == ("auto", "slow")
        assert (read.pids, read.store_pids) == ((1, 2), (3,))
        assert more == ["--version", "sprat=0.1.0"]
        assert read.pause_pids == ()
        paused = parse_system(replace(system, pause=True).flags()[1])
        assert paused.pause_pids == (1, 2, 3, 4)

    def test_every_flag_is_one_that_it_takes(self):
        parser = argparse.ArgumentParser()
        add_bench_gateway(parser.add_subparsers())
        load = Load(2.0, "1,16", "unary,stream", streams=500, save=True, as_json=True)
        options = parser.parse_args(["bench-gateway", "--system", "x", *load.flags()])
        assert (options.seconds, options.concurrency, options.modes) == (2.0, "1,16", "unary,stream")
        assert (options.streams, options.save, options.json) == (500, True, True)
        assert set(options.streams_systems.split(",")) <= set(SYSTEMS)


class TestCommand:
    def test_all_systems_of_the_contract_run_unless_told_otherwise(self, monkeypatch):
        asked = {}

        def record(systems, load, *, pin, say):
            asked.update(systems=systems, load=load, pin=pin)
            return 0

        monkeypatch.setattr(gateway_bench, "run_gateway_bench", record)
        assert CliRunner().invoke(sprat, ["bench", "gateway", "--no-pin"]).exit_code == 0
        assert asked["systems"] == ["direct", "sprat", "sprat-2", "vllm-router", "litellm", "ray-serve"]
        assert asked["load"].concurrency == "1,16,64,256"
        assert asked["pin"] is False

    @pytest.mark.parametrize("systems", ["nginx", "direct,nginx", ","])
    def test_an_unknown_system_is_refused_with_the_known_ones(self, systems):
        shown = CliRunner().invoke(sprat, ["bench", "gateway", "--systems", systems])
        assert shown.exit_code == 2
        assert "vllm-router" in shown.output

    def test_every_name_can_be_started(self):
        assert {DIRECT, *STARTS} == set(SYSTEMS) >= set(DEFAULT_SYSTEMS)
