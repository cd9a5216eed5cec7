"""The scheduler bench: its arithmetic, the calls that it makes up, and its processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import textwrap
import threading
import time
from collections import Counter

import psutil
import pytest
from click.testing import CliRunner

from cluster.scheduler import scripts
from deployments.bench import scheduler_bench
from deployments.bench.admit_rate import Run
from deployments.bench.admit_rate import report as report_of_rates
from deployments.bench.cost_cases import (
    ADAPTERS,
    ADAPTERS_PER_REPLICA,
    Case,
    PoolOfReplicas,
    adapter_cases,
    fleet,
    headline_case,
    plain_cases,
)
from deployments.bench.machine_facts import machine_facts
from deployments.bench.own_process import run_module
from deployments.bench.percentiles import nearest_rank
from deployments.bench.recorded_commands import CommandRecorder
from deployments.bench.script_cost import Burst, Cost, ScriptCosts, growth_exponent, report
from deployments.cli.main import sprat


@pytest.fixture
def draw() -> random.Random:
    return random.Random(1)


class TestCosts:
    def test_the_headline_is_the_median_burst(self):
        cost = Cost.of([Burst(90, 100), Burst(100, 130), Burst(500, 600)])

        assert cost == Cost(median_us=100, fastest_us=90, cpu_us=130, bursts=3)

    @pytest.mark.parametrize(
        ("us_of", "wanted"),
        [
            ({1: 5, 10: 50, 100: 500}, 1),
            ({1: 7, 10: 7, 1000: 7}, 0),
            ({100: 10, 10_000: 100}, 0.5),
        ],
    )
    def test_growth(self, us_of, wanted):
        assert growth_exponent(us_of) == pytest.approx(wanted)

    def test_one_size_has_no_growth(self):
        assert growth_exponent({1: 5}) is None

    def test_the_report_names_sizes_as_the_command_promises(self):
        cases = (headline_case(1), headline_case(1000), Case("odd", (fleet(1),), budgets=0))
        admit = {case: Cost(100.0 + number, 90, 110, bursts=3) for number, case in enumerate(cases)}

        shown = report(
            ScriptCosts(
                admit, dict.fromkeys(cases, Cost(50, 40, 60, bursts=3)), {"sweep": Cost(9, 8, 7, bursts=3)}
            )
        )

        assert shown["admit_us_server"] == {"1": 100, "1000": 101}
        assert shown["admit_us_server_fastest_burst"] == {"1": 90, "1000": 90}
        assert shown["settle_us_server"] == {"1": 50, "1000": 50}
        assert shown["admit_growth_exponent"] == pytest.approx(0.001, abs=0.001)
        assert [row["case"] for row in shown["cases"]] == ["1", "1000", "odd"]
        assert shown["other_us"] == {"sweep": {"median": 9, "fastest_burst": 8, "cpu": 7, "bursts": 3}}


class TestRates:
    def test_pairs_add_up_and_the_slowest_client_tells_the_time(self):
        clients = [
            {"pairs": 100, "took_s": 2.0, "admit_p50_ms": 1.0, "admit_p99_ms": 5.0},
            {"pairs": 60, "took_s": 1.0, "admit_p50_ms": 2.0, "admit_p99_ms": 4.0},
        ]

        row = Run(concurrency=16, clients=clients, took_s=2.0, cpu_s=0.5, script_s=0.016).row()

        assert row == {
            "processes": 2,
            "concurrency": 16,
            "pairs_per_s": 110,
            "admit_p50_ms": 2.0,
            "admit_p99_ms": 5.0,
            "script_us_per_pair": 100.0,
            "server_busy": 0.25,
        }

    def test_the_round_trip_is_that_of_a_client_alone(self):
        def run(processes, concurrency, p50_ms):
            client = {"pairs": 10, "took_s": 1.0, "admit_p50_ms": p50_ms, "admit_p99_ms": 9.0}
            return Run(concurrency, [client] * processes, took_s=1.0, cpu_s=0.1, script_s=0.1)

        shown = report_of_rates(run(1, 1, 0.3), [run(1, 16, 4.0), run(4, 16, 8.0)])

        assert shown["rtt_ms"] == {"p50": 0.3, "p99": 9.0}
        assert shown["admits_per_s"] == {"1": 10, "4": 40}
        assert len(shown["rates"]) == 3

    @pytest.mark.parametrize(("percent", "wanted"), [(50, 2), (99, 4), (1, 1)])
    def test_percentiles_are_values_that_were_measured(self, percent, wanted):
        assert nearest_rank([4, 1, 3, 2], percent) == wanted
        assert nearest_rank([], percent) is None


class TestCases:
    def test_every_replica_holds_100_of_10_000_adapters(self):
        held = Counter(
            name
            for state in PoolOfReplicas("p", 1_000, adapters=True).states()
            for name, phase in state.adapters
            if phase == "loaded"
        )

        assert len(held) == ADAPTERS
        assert set(held.values()) == {1_000 * ADAPTERS_PER_REPLICA // ADAPTERS}

    def test_the_headline_has_two_budgets_and_two_rates(self, draw):
        request = headline_case(100).admission("r", draw)

        assert [line.owner for line in request.budgets] == ["key:bench", "tenant:bench"]
        assert [rate.bucket for rate in request.rates] == ["requests:key:bench", "tokens:key:bench"]
        assert request.checked

    def test_six_budgets_are_six_and_none_are_none(self, draw):
        by_name = {case.name: case.admission("r", draw) for case in plain_cases()}

        assert len({line.name for line in by_name["100, six budgets"].budgets}) == 6
        assert (by_name["100, no limits"].budgets, by_name["100, no limits"].rates) == ((), ())

    def test_all_pools_compete(self, draw):
        request = next(case for case in plain_cases() if len(case.pools) == 3).admission("r", draw)

        assert len({candidate.pool for candidate in request.candidates}) == 3
        assert request.spill

    def test_calls_for_adapters_ask_for_different_ones(self, draw):
        case = adapter_cases()[0]

        asked = {case.admission("r", draw).candidates[0].adapter for _ in range(50)}

        assert len(asked) > 40


class TestRecorder:
    async def test_it_keeps_the_command_that_the_scheduler_would_send(self, draw):
        request = headline_case(10).admission("r1", draw)

        name, sha, key_count, *words = await CommandRecorder().record(lambda it: it.admit(request))

        assert (name, sha) == ("EVALSHA", scripts.ADMIT.sha)
        assert all(word.startswith("{sch}:") for word in words[:key_count])
        assert words[key_count] == "r1"

    async def test_a_fleet_reports_the_same_adapters_again(self):
        recorder = CommandRecorder()
        (state,) = PoolOfReplicas("p", 1, adapters=True).states()

        first = await recorder.record(lambda it: it.heartbeat(state))

        assert await recorder.record(lambda it: it.heartbeat(state)) == first

    async def test_a_call_without_a_script_is_a_mistake(self):
        with pytest.raises(RuntimeError, match="no script"):
            await CommandRecorder().record(lambda it: it.poll((), 1))


class TestOwnProcess:
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

        def write(source):
            (tmp_path / "part_of_bench.py").write_text(textwrap.dedent(source))
            return "part_of_bench"

        return write

    def test_its_json_comes_back(self, module):
        part = module("import sys, json; print(json.dumps({'options': sys.argv[1:]}))")

        assert run_module(part, "--seed", "1") == {"options": ["--seed", "1"]}

    def test_a_failure_is_an_error(self, module):
        with pytest.raises(RuntimeError, match="part_of_bench ended with exit code 3"):
            run_module(module("import sys; sys.exit(3)"))

    def test_a_part_that_takes_too_long_may_tidy_up(self, module, tmp_path):
        part = module(f"""
            import pathlib, time
            try:
                time.sleep(60)
            finally:
                pathlib.Path({str(tmp_path / "tidied")!r}).touch()
            """)

        with pytest.raises(subprocess.TimeoutExpired):
            run_module(part, timeout_s=3)

        assert (tmp_path / "tidied").exists()

    def test_ctrl_c_ends_it_with_all_that_it_started(self, module, tmp_path):
        part = module(f"""
            import pathlib, subprocess, sys, time
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
            try:
                time.sleep(60)
            finally:
                pathlib.Path({str(tmp_path / "tidied")!r}).touch()
            """)

        def interrupt():
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_module(part)

        assert (tmp_path / "tidied").exists()
        pid = int((tmp_path / "pid").read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


MEASURED = {
    "cases": [
        {
            "case": "100",
            "admit_us": {"median": 99.0, "fastest_burst": 80.0, "cpu": 120.0},
            "settle_us": {"median": 70.0, "fastest_burst": 60.0, "cpu": 90.0},
        }
    ],
    "other_us": {"sweep of 100 replicas": {"median": 400.0, "fastest_burst": 300.0, "cpu": 500.0}},
    "rates": [
        {
            "processes": 4,
            "concurrency": 16,
            "pairs_per_s": 2345,
            "admit_p50_ms": 1.0,
            "admit_p99_ms": 2.0,
            "script_us_per_pair": 300.0,
            "server_busy": 0.5,
        }
    ],
}
OVERLOAD = {
    "interactive_attainment": 0.9876,
    "jain": None,
    "started_late": 0,
    "served": 5,
    "refused": 4,
    "abandoned": 0,
    "failed": 0,
    "utilisation": 0.97,
}


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch):
        monkeypatch.setattr(scheduler_bench, "run_module", lambda _module: dict(MEASURED))
        monkeypatch.setattr(scheduler_bench, "run_overload", lambda _name, **_options: OVERLOAD)
        return lambda *words: CliRunner().invoke(sprat, ["bench", "scheduler", *words])

    def test_json_is_one_object_with_a_row_per_system_and_the_machine(self, run):
        finished = run("--json", "--systems", "sprat,fifo+deadlines", "--seed", "7")

        shown = json.loads(finished.stdout)
        assert shown["overload"] == {"sprat": OVERLOAD, "fifo+deadlines": OVERLOAD}
        assert shown["seed"] == 7
        assert {"date", "cores", "load_average", "versions"} <= shown["machine"].keys()
        assert "sprat at twice its capacity" in finished.stderr

    def test_people_get_tables(self, run):
        shown = run().stdout

        for words in ("admit, 100", "settle, 100", "2345", "0.988", "ray_capacity_queue"):
            assert words in shown

    def test_an_unknown_system_is_named_with_those_there_are(self, run):
        finished = run("--systems", "sprat,slurm")

        assert finished.exit_code == 2
        assert "unknown system slurm; choose of sprat" in finished.stderr

    def test_the_machine_is_described(self):
        facts = machine_facts()

        assert facts["cores"] >= 1
        assert facts["versions"].keys() == {"python", "redis-py", "hiredis", "ray", "store"}
        assert "v=" in facts["versions"]["store"]
