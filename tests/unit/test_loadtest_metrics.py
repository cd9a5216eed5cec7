"""Figures against values worked out by hand, and the SLO's fixed denominator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.bad_input import BadInput
from loadtest.metrics.call_record import CallRecord, Outcome
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.metrics.summary import Due, summary

SLO = Slo({"ttft_p95_s": 0.5, "tpot_p95_ms": 60, "e2e_p95_s": 2.0})


def record(index: int = 0, **changes: Any) -> CallRecord:
    """Four tokens: the first after 0.2 s, the others 50 ms apart."""
    fields: dict[str, Any] = {
        "index": index,
        "worker": 0,
        "tenant": "default",
        "task": None,
        "intended_s": float(index),
        "lateness_s": 0.001,
        "outcome": Outcome.OK,
        "reason": "",
        "message": "",
        "status": 200,
        "ttft_s": 0.2,
        "e2e_s": 0.35,
        "gaps_s": (0.05, 0.05, 0.05),
        "planned_prompt_tokens": 100,
        "planned_output_tokens": 4,
        "prompt_tokens": 110,
        "output_tokens": 4,
        "cost_usd": 0.002,
        "saved_usd": 0.01,
        "tier": "small",
        "model": "m",
        "replica": "r",
        "route": "rule:x",
        "request_id": "id",
    }
    return CallRecord(**(fields | changes))


def refused(index: int, reason: str = "429 queue_full") -> CallRecord:
    nothing = dict.fromkeys(("ttft_s", "prompt_tokens", "output_tokens", "cost_usd", "saved_usd", "tier"))
    bad = {"outcome": Outcome.REFUSED, "reason": reason, "message": "full", "status": 429, "e2e_s": 0.01}
    return record(index, **nothing, **bad, gaps_s=())


def figures(records: list[CallRecord], slo: Slo | None = None, **due: Any) -> dict[str, Any]:
    return summary(records, Due(due.pop("planned", len(records)), **due), slo)


def test_tpot_is_the_time_after_the_first_token_by_the_tokens_after_it() -> None:
    assert record().tpot_s == pytest.approx((0.35 - 0.2) / 3)
    assert record(output_tokens=1).tpot_s is None
    assert record(output_tokens=None).tpot_s is None


def test_rates_are_over_the_time_from_the_first_start_to_the_last_end() -> None:
    found = figures([record(0), record(1), record(2, e2e_s=3.0)])

    assert found["window_s"] == 5.0
    assert found["requests_per_s"] == 0.6
    assert found["offered_per_s"] == 1.5
    assert found["output_tokens_per_s"] == 2.4
    assert found["prompt_tokens_per_s"] == 66.0


def test_percentiles_are_nearest_rank_with_their_count() -> None:
    found = figures([record(index, ttft_s=(index + 1) / 1000) for index in range(200)])["ttft_ms"]

    assert {name: found[name] for name in ("n", "p50", "p90", "p95", "p99", "max")} == {
        "n": 200, "p50": 100.0, "p90": 180.0, "p95": 190.0, "p99": 198.0, "max": 200.0
    }  # fmt: skip


def test_itl_has_every_gap_and_tpot_one_value_per_call() -> None:
    found = figures([record(0), record(1, gaps_s=(0.01,), output_tokens=1)])

    assert found["itl_ms"]["n"] == 4
    assert found["tpot_ms"] == {"n": 1, **dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 50.0)}


def test_refusals_are_rows_and_stay_in_the_denominator() -> None:
    found = figures([record(0), refused(1), refused(2), refused(3, "503 journal_full")], SLO)

    assert found["calls"] | {"planned": 4, "due": 4, "ok": 1, "refused": 3, "failed": 0} == found["calls"]
    assert found["slo_attainment"] == 0.25
    assert found["refusals"] == [
        {"reason": "429 queue_full", "count": 2, "share": 0.5, "first_message": "full"},
        {"reason": "503 journal_full", "count": 1, "share": 0.25, "first_message": "full"},
    ]
    assert found["ttft_ms"]["n"] == 1


def test_calls_of_a_lost_worker_were_due_and_failed() -> None:
    found = figures([record(0)], SLO, planned=4, lost=3)

    assert found["calls"]["due"] == 4
    assert found["calls"]["failed"] == 3
    assert found["slo_attainment"] == 0.25


def test_goodput_counts_calls_that_meet_all_limits() -> None:
    calls = [record(0), record(1, ttft_s=0.6, e2e_s=0.75), record(2, e2e_s=0.6), record(3, e2e_s=2.0)]
    # Late first token; TPOT of 133 ms; TPOT of 600 ms. One is good, over 5 s.
    found = figures(calls, SLO)

    assert found["slo_attainment"] == 0.25
    assert found["goodput_per_s"] == 0.2
    assert figures(calls)["goodput_per_s"] is None


def test_a_limit_is_met_when_95_percent_of_all_calls_meet_it() -> None:
    ok = [record(index) for index in range(95)]
    slow = [record(index, ttft_s=0.9, e2e_s=1.05) for index in range(95, 100)]

    assert SLO.verdict(ok + slow)["met"] is True
    assert SLO.verdict(ok[1:] + slow)["met"] is False
    assert SLO.verdict(ok + slow)["limits"][0] == {
        "key": "ttft_p95_s", "limit": 0.5, "measured": 0.2, "met": True
    }  # fmt: skip


def test_refusals_cannot_improve_a_percentile() -> None:
    ok = [record(index) for index in range(90)]

    verdict = SLO.verdict([*ok, *map(refused, range(90, 100))])

    assert verdict["met"] is False
    assert all(row["measured"] is None for row in verdict["limits"])


def test_one_token_meets_every_limit_on_the_tokens_after_it() -> None:
    assert SLO.met_by(record(output_tokens=1, gaps_s=(), e2e_s=0.2))


def test_money_is_summed_and_absent_without_costs() -> None:
    found = figures([record(0), record(1), refused(2)])

    assert found["cost_usd"] == pytest.approx(0.004)
    assert found["saved_usd"] == pytest.approx(0.02)
    assert found["usd_per_1000_requests"] == pytest.approx(2.0)
    assert figures([record(cost_usd=None, saved_usd=None)])["cost_usd"] is None


def test_tiers_and_tenants_have_figures_of_their_own() -> None:
    found = figures([record(0), record(1, tier="large", tenant="b", ttft_s=0.6, e2e_s=0.75), refused(2)], SLO)

    assert [(row["name"], row["due"], row["ok"]) for row in found["tiers"]] == [
        ("(none)", 1, 0), ("large", 1, 1), ("small", 1, 1)
    ]  # fmt: skip
    assert [(row["name"], row["due"], row["slo_attainment"]) for row in found["tenants"]] == [
        ("b", 1, 0.0), ("default", 2, 0.5)
    ]  # fmt: skip


def test_the_error_of_the_prompt_length_is_reported() -> None:
    found = figures([record(0), record(1, prompt_tokens=None), record(2, prompt_tokens=104)])["prompt_tokens"]

    assert found == {
        "n": 2, "mean_planned": 100.0, "mean_reported": 107.0, "mean_error": 7.0, "relative_error": 0.07
    }  # fmt: skip


def test_nothing_measured_is_a_report_without_figures() -> None:
    found = figures([], SLO, planned=3)

    assert found["requests_per_s"] is None
    assert found["slo_attainment"] is None
    assert found["slo"]["met"] is False


def test_a_record_survives_the_way_to_the_master() -> None:
    for sent in (record(3), refused(4)):
        assert CallRecord.from_message(sent.as_message()) == sent


def test_an_slo_is_read_from_the_command_line_and_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "slo.yaml"
    file.write_text("ttft_p95_s: 0.5\ntpot_p95_ms: 60\ne2e_p95_s: 2\n")

    assert parse_slo("ttft_p95_s=0.5,tpot_p95_ms=60,e2e_p95_s=2") == SLO
    assert parse_slo(str(file)) == SLO
    assert parse_slo(str(SLO)) == SLO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft_p50_s=1", "keys are"),
        ("ttft_p95_s=soon", "number"),
        ("ttft_p95_s=-1", "above 0"),
        ("ttft_p95_s=nan", "above 0"),
        ("ttft_p95_s=1,ttft_p95_s=2", "twice"),
        ("/nowhere/slo.yaml", "nowhere"),
    ],
)
def test_a_wrong_slo_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_slo(text)


def test_a_whole_answer_has_no_first_token_to_limit() -> None:
    with pytest.raises(BadInput, match="--unary"):
        parse_slo("ttft_p95_s=1", streamed=False)
    assert parse_slo("e2e_p95_s=1", streamed=False) == Slo({"e2e_p95_s": 1.0})
