"""Workload strings, arrivals, traces, rates, shares, mixes: what is sent, and when."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

import pytest

from loadtest.bad_input import BadInput
from loadtest.workloads.arrivals import arrival_times
from loadtest.workloads.grammar import Closed, Diurnal, Gamma, Poisson, Trace, parse_workload
from loadtest.workloads.mix import Mix, TaskShare, Tenant, checked_tasks, parse_task, read_mix
from loadtest.workloads.plan import Caps, Plan, PlanInput, make_plan
from loadtest.workloads.planned_call import TraceRow
from loadtest.workloads.rate import Rate, parse_rate, scaled_rows
from loadtest.workloads.traces import default_folders, find_trace, read_trace

ALONE = Mix((Tenant("default", "key"),))
ROWS = [TraceRow(0.0, 100, 10), TraceRow(1.0, 200, 20), TraceRow(1.5, 300, 30), TraceRow(10.0, 400, 40)]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def plan_of(workload: str, **given: object) -> Plan:
    return make_plan(PlanInput(parse_workload(workload), ALONE, **given), lambda _: ROWS)


def starts(plan: Plan) -> list[float]:
    return [call.at_s for call in plan.calls]


@pytest.mark.parametrize(
    "text",
    [
        "azure-code",
        "mooncake",
        "trace:some/file.csv",
        "poisson:2.5",
        "gamma:2,4",
        "diurnal:5,60,0.8",
        "closed:8",
    ],
)
def test_a_workload_prints_back_as_it_was_written(text: str) -> None:
    assert str(parse_workload(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "azure", "poisson", "poisson:", "poisson:0", "poisson:-1", "poisson:nan", "poisson:inf"),
        *("poisson:1,2", "gamma:1", "gamma:1,0", "diurnal:1,2", "diurnal:1,60,1.5"),
        *("closed:0", "closed:1.5", "trace:"),
    ],
)
def test_a_wrong_workload_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadInput, match="--workload"):
        parse_workload(text)


@pytest.mark.parametrize(
    ("process", "cv"), [(Poisson(20.0), 1.0), (Gamma(20.0, 3.0), 3.0), (Gamma(20.0, 0.5), 0.5)]
)
def test_arrivals_have_the_rate_and_the_variation_that_was_asked_for(
    process: Poisson | Gamma, cv: float
) -> None:
    times = arrival_times(process, Random(7))
    drawn = [next(times) for _ in range(20_000)]
    gaps = [after - before for before, after in pairwise(drawn)]

    assert fmean(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_a_diurnal_rate_rises_in_the_first_half_of_its_period_and_falls_in_the_second() -> None:
    times = arrival_times(Diurnal(50.0, 100.0, 0.8), Random(7))
    drawn = [next(times) for _ in range(10_000)]
    whole = [at_s for at_s in drawn if at_s < 100 * math.floor(drawn[-1] / 100)]
    rising = sum(at_s % 100 < 50 for at_s in whole)

    # The mean over half a period is mean · (1 ± 2 · amplitude / π).
    assert rising / len(whole) == pytest.approx(0.5 + 0.8 / math.pi, abs=0.02)


def test_a_factor_divides_every_gap_and_keeps_the_shape() -> None:
    half = scaled_rows(ROWS, parse_rate("0.5x"))

    assert [row.at_s for row in half] == [0.0, 2.0, 3.0, 20.0]
    assert [row.prompt_tokens for row in half] == [100, 200, 300, 400]


def test_a_mean_rate_is_gaps_over_span_and_keeps_the_shape() -> None:
    scaled = scaled_rows(ROWS, parse_rate("3/s"))

    assert scaled[-1].at_s == pytest.approx(1.0)  # three gaps at three per second
    assert [row.at_s / scaled[-1].at_s for row in scaled] == pytest.approx([0, 0.1, 0.15, 1])


def test_a_trace_without_a_span_has_no_mean_rate() -> None:
    with pytest.raises(BadInput, match="factor"):
        scaled_rows([TraceRow(0.0, 1, 1)], Rate(3.0, is_factor=False))


@pytest.mark.parametrize("text", ["", "2", "0x", "-1x", "x", "1/m", "1e3x"])
def test_a_wrong_rate_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--rate"):
        parse_rate(text)


def test_the_limit_is_applied_before_the_rate_and_the_duration_after_it() -> None:
    assert starts(plan_of("azure-code", limit=3, rate=parse_rate("2/s"))) == [0.0, pytest.approx(2 / 3), 1.0]
    assert starts(plan_of("azure-code", rate=parse_rate("0.5x"), duration_s=3.0)) == [0.0, 2.0]


def test_the_rate_of_a_process_is_scaled_or_set() -> None:
    base, doubled, fixed = (
        starts(plan_of("poisson:4", limit=50, rate=parse_rate(rate))) for rate in ("1x", "2x", "8/s")
    )

    assert doubled == pytest.approx([at_s / 2 for at_s in base])
    assert fixed == doubled


def test_a_process_without_an_end_is_refused() -> None:
    with pytest.raises(BadInput, match="--duration or --limit"):
        plan_of("poisson:4")


def test_a_rate_makes_no_sense_in_a_closed_loop() -> None:
    with pytest.raises(BadInput, match="closed"):
        plan_of("closed:4", limit=5, rate=parse_rate("2x"))


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    plans = [plan_of("gamma:5,2", limit=40, lengths="1-900,1-90", seed=seed) for seed in (1, 1, 2)]

    assert plans[0] == plans[1]
    assert plans[0].fingerprint() == plans[1].fingerprint() != plans[2].fingerprint()


def test_more_calls_do_not_change_the_first_ones() -> None:
    short, long = (plan_of("poisson:5", limit=limit, lengths="1-900,1-90").calls for limit in (10, 20))

    assert long[:10] == short


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_workers_of_an_open_loop_together_make_every_call_once(workers: int) -> None:
    plan = plan_of("poisson:5", limit=20)
    shares = [list(plan.share(worker, workers)) for worker in range(workers)]

    assert sorted((call for share in shares for call in share), key=lambda call: call.index) == list(
        plan.calls
    )
    assert all(call.index % workers == worker for worker, share in enumerate(shares) for call in share)


def test_a_closed_loop_goes_on_with_new_texts_after_its_drawn_lengths() -> None:
    plan = plan_of("closed:4", limit=2500)
    indices = [call.index for worker in range(2) for call in plan.share(worker, 2)]

    assert len(plan.calls) == 1000
    assert sorted(indices) == list(range(2500))


def test_a_closed_loop_that_only_time_ends_has_no_count() -> None:
    plan = plan_of("closed:4", duration_s=1.0)
    share = plan.share(0, 1)

    assert plan.count is None
    assert [next(share).index for _ in range(1002)][-1] == 1001


def test_lengths_are_fixed_drawn_or_those_of_a_trace() -> None:
    fixed = plan_of("poisson:5", limit=9, lengths="70,7").calls
    drawn = plan_of("poisson:5", limit=200, lengths="10-12,5").calls
    traced = plan_of("poisson:5", limit=200, lengths="azure-code").calls

    assert {(call.prompt_tokens, call.output_tokens) for call in fixed} == {(70, 7)}
    assert {(call.prompt_tokens, call.output_tokens) for call in drawn} == {(10, 5), (11, 5), (12, 5)}
    assert {call.prompt_tokens for call in traced} == {100, 200, 300, 400}
    assert all(call.prompt_tokens == 10 * call.output_tokens for call in traced)


@pytest.mark.parametrize("text", ["", "10", "0,1", "1,2,3", "9-3,1", "a,b"])
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--lengths"):
        plan_of("poisson:5", limit=1, lengths=text)


def test_what_a_context_cannot_hold_is_clipped_and_counted() -> None:
    plan = plan_of("azure-code", caps=Caps(prompt_tokens=250, output_tokens=35))

    assert [call.prompt_tokens for call in plan.calls] == [100, 200, 250, 250]
    assert [call.output_tokens for call in plan.calls] == [10, 20, 30, 35]
    assert (plan.clipped_prompts, plan.clipped_outputs) == (2, 1)


def test_tenants_and_tasks_come_in_their_shares() -> None:
    mix = Mix(
        (Tenant("a", "1", weight=3), Tenant("b", "2", weight=1, task="extract")),
        (TaskShare("classify", 0.4),),
    )
    calls = make_plan(PlanInput(Poisson(5.0), mix, limit=4000), lambda _: ROWS).calls
    of_a = [call for call in calls if call.tenant == "a"]

    assert len(of_a) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(call.task == "classify" for call in of_a) / len(of_a) == pytest.approx(0.4, abs=0.03)
    assert {call.task for call in calls if call.tenant == "b"} <= {"extract", "classify"}
    assert sum(call.task is None for call in of_a) > 0


def test_a_task_may_have_a_share() -> None:
    assert parse_task("classify") == TaskShare("classify", 1.0)
    assert parse_task("classify=0.25") == TaskShare("classify", 0.25)
    for wrong in ("=0.5", "classify=0", "classify=2", "classify=x"):
        with pytest.raises(BadInput, match="--task"):
            parse_task(wrong)
    with pytest.raises(BadInput, match="more than 1"):
        checked_tasks([TaskShare("a", 0.6), TaskShare("b", 0.6)])


def test_a_mix_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text("- {name: a, key: k1, weight: 2}\n- {name: b, key: k2, task: classify}\n")
    assert read_mix(file) == (Tenant("a", "k1", 2.0), Tenant("b", "k2", 1.0, "classify"))

    for wrong, message in (
        ("{}", "list"),
        ("- {name: a}", "key"),
        ("- {name: a, key: k, colour: red}", "colour"),
        ("- {name: a, key: k, weight: 0}", "above 0"),
        ("- {name: a, key: k}\n- {name: a, key: l}", "twice"),
        ("- [", "mix.yaml"),
    ):
        file.write_text(wrong)
        with pytest.raises(BadInput, match=message):
            read_mix(file)


def test_the_azure_format_is_read(tmp_path: Path) -> None:
    file = tmp_path / "code.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,0\n"
    )

    first, second = read_trace(file)
    assert first == TraceRow(0.0, 4808, 10)
    assert second == TraceRow(pytest.approx(0.052), 3180, 1)


def test_the_mooncake_format_is_read_and_sorted(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"timestamp": 3000, "input_length": 900, "output_length": 5, "hash_ids": [7, 9]}\n'
        '{"timestamp": 1000, "input_length": 600, "output_length": 4, "hash_ids": [7, 8]}\n'
    )

    assert read_trace(file) == [TraceRow(0.0, 600, 4, (7, 8)), TraceRow(2.0, 900, 5, (7, 9))]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", '{"a": 1}\n', "TIMESTAMP,ContextTokens,GeneratedTokens\n"]
)
def test_another_format_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)

    with pytest.raises(BadInput, match="trace"):
        read_trace(file)


def test_an_absent_trace_names_its_file_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"AzureLLMInferenceTrace_code\.csv.*AzurePublicDataset.*--traces"):
        find_trace(Trace("azure-code"), [tmp_path])
    with pytest.raises(BadInput, match="there is no file nowhere"):
        find_trace(Trace("trace:nowhere.csv"), [tmp_path])


def test_a_trace_is_found_in_the_first_folder_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "AzureLLMInferenceTrace_code.csv").touch()
    monkeypatch.setenv("SPRAT_TRACES", str(tmp_path))

    assert find_trace(Trace("azure-code"), default_folders()).parent == tmp_path


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public traces are not on this machine")
def test_the_public_traces_have_their_published_size() -> None:
    azure = read_trace(find_trace(Trace("azure-code"), [SHARED]))
    mooncake = read_trace(find_trace(Trace("mooncake"), [SHARED]))

    assert (len(azure), round(azure[-1].at_s)) == (8819, 3436)
    assert len(mooncake) == 3993
    assert all(len(row.blocks) == -(-row.prompt_tokens // 512) for row in mooncake)


def test_closed_users_stay_what_they_are() -> None:
    assert plan_of("closed:4", limit=5).users == 4
    assert parse_workload("closed:4") == Closed(4)
    assert plan_of("poisson:4", limit=5).users is None
