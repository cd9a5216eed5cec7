"""`sprat bench scheduler` in small, on a real Valkey: shapes and promises, no figures."""

from __future__ import annotations

import pytest

from deployments.bench.cost_cases import Case, PoolOfReplicas, headline_case
from deployments.bench.overload_main import run_overload
from deployments.bench.scheduler_cost import measure_cost

pytestmark = pytest.mark.contract


async def test_the_cost_bench_measures_every_operation():
    few_adapters = Case("adapters", (PoolOfReplicas("adapters", 3, adapters=True),))
    phases = ((headline_case(1), headline_case(10)), (few_adapters,))

    shown = await measure_cost(phases=phases, bursts=2, seconds=0.3)

    assert shown["admit_us_server"].keys() == {"1", "10"}
    assert [row["case"] for row in shown["cases"]] == ["1", "10", "adapters"]
    for row in shown["cases"]:
        for cost in (row["admit_us"], row["settle_us"]):
            assert 0 < cost["fastest_burst"] <= cost["median"]
            assert cost["cpu"] > 0
    operations = {name.split(" ")[0] for name in shown["other_us"]}
    assert operations == {"admit", "settle", "poll", "renew", "sweep", "heartbeat"}
    assert shown["admits_per_s"].keys() == {"1", "4"}
    assert all(rate > 0 for rate in shown["admits_per_s"].values())
    assert 0 < shown["rtt_ms"]["p50"] <= shown["rtt_ms"]["p99"]


def test_the_scheduler_never_starts_a_call_late_and_serves_interactive_ones_in_time():
    row = run_overload("sprat", seed=1, seconds=2)

    assert row["started_late"] == 0
    assert (row["failed"], row["abandoned"]) == (0, 0)
    assert row["served"] + row["refused"] == row["arrivals"]
    assert row["interactive_attainment"] > 0.9
