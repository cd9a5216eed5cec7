"""Clients of others against the laptop cluster and its real models. Small ones: what is asked here is that
every client reads what vLLM says through the gateway, not that the models are clever."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.reporting import report
from tests.clients.runs import RUNS, Case, run_clients
from tests.e2e.conftest import Laptop

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

REAL_RUNS = [run for run in RUNS if run != ("openai2", ("test_openai.py",))]
"""The openai SDK in its newer version only: the older one is under LiteLLM and instructor as well."""

AT_ONCE = 3
"""Runs beside each other: the engine's batch answers several calls in little more time than one."""


def test_clients(laptop: Laptop, subtests: pytest.Subtests) -> None:
    def run(environment: str, files: tuple[str, ...]) -> list[Case]:
        return run_clients(environment, files, target(laptop))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(run, *zip(*REAL_RUNS, strict=True)))

    for cases in results:
        report(cases, "real", subtests)
    until_nothing_runs(laptop)


def target(laptop: Laptop) -> dict[str, str]:
    """With a slow key of its own: one may send 12 requests a minute, one at a time."""
    made = laptop.sprat(
        *("keys", "create", "--tenant", "clients", "--name", "slow", "--rpm", "12", "--rpm-burst", "1"),
        "--json",
    )
    assert made.returncode == 0, made.stderr
    return {
        "SPRAT_ROOT": laptop.started["endpoint"].removesuffix("/v1"),
        "SPRAT_API_KEY": laptop.started["api_key"],
        "SPRAT_SLOW_KEY": json.loads(made.stdout)["api_key"],
    }


def until_nothing_runs(laptop: Laptop) -> None:
    """No call that its client has left."""
    deadline_s = time.monotonic() + 5
    while any(pool["leases"] for pool in laptop.status()["pools"]):
        assert time.monotonic() < deadline_s, "calls are still running that no client waits for"
        time.sleep(0.2)
