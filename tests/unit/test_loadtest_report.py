"""The page, the rows and the verdict, from records made by hand."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest.generator.answer import Answer
from loadtest.metrics.call_record import CallRecord, Outcome
from loadtest.metrics.collected import Collected
from loadtest.metrics.slo import Slo
from loadtest.metrics.verdict import finish
from loadtest.report.charts import charts
from loadtest.report.csv_rows import COLUMNS, write_csv
from loadtest.report.page import page
from loadtest.report.plot import Axis, Curve, plot, thinned
from loadtest.report.text import text
from tests.unit.test_loadtest_metrics import record, refused

SLO = Slo({"ttft_p95_s": 0.5, "e2e_p95_s": 2.0})


FACTS: dict[str, Any] = {
    "date": "2026-11-22T12:00:00+00:00",
    "workload": "poisson:5",
    "rate": "1x",
    "seed": 1,
    "open_loop": True,
    "endpoint": "http://127.0.0.1:8000/v1",
    "model": "auto",
    "streamed": True,
    "workers": 1,
    "chars_per_token": 4.0,
    "clipped": {"prompts": 1, "outputs": 0},
}


def report_of(records: list[CallRecord], slo: Slo | None = None, **collected: Any) -> dict[str, Any]:
    done = finish(Collected(records, **collected), len(records), slo, 0.05)
    return FACTS | done.report


class Reader(HTMLParser):
    """Remembers what a browser would fetch, and the text that it would show."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.shown: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


def test_the_page_fetches_nothing_and_shows_what_was_measured() -> None:
    records = [*(record(index, tier="small") for index in range(5)), record(5, tier="large"), refused(6)]
    source = page(report_of(records, SLO), records, SLO)
    read = Reader(source)

    assert read.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert "@import" not in source
    assert "url(" not in source
    assert read.tags.count("svg") == len(charts(records, SLO)) == 6
    shown = "".join(read.shown)
    for expected in ("SLO missed", "429 queue_full", "tier small", "poisson:5"):
        assert expected in shown


def test_what_a_server_says_is_text_and_not_markup() -> None:
    evil = '<script>alert("x")</script>'
    records = [record(0, tenant=evil, tier=evil), record(1), refused(2, evil)]
    source = page(report_of(records, SLO), records, SLO)

    assert "<script>" not in source
    assert evil in "".join(Reader(source).shown)


@pytest.mark.parametrize("records", [[], [refused(0)], [record(0)], [record(0, ttft_s=None, gaps_s=())]])
def test_a_page_can_be_made_of_almost_nothing(records: list[CallRecord]) -> None:
    assert "Load test" in page(report_of(records, SLO), records, SLO)
    assert "calls" in text(report_of(records))


def test_a_curve_of_a_distribution_ends_below_100_percent_by_the_calls_that_had_no_answer() -> None:
    records = [*(record(index, ttft_s=0.1 * (index + 1)) for index in range(3)), refused(3)]
    chart = next(each for each in charts(records, None) if each.title == "TTFT, cumulative")
    ys = [float(y) for y in re.findall(r",([\d.]+)", re.findall(r'points="([^"]+)"', chart.svg)[0])]
    top, bottom = 40.0, 320.0 - 52.0  # of the plot area: 100 % and 0 %

    assert [(bottom - y) / (bottom - top) for y in ys] == pytest.approx([0.25, 0.5, 0.75], abs=0.001)


def test_a_plot_puts_values_where_its_axes_say() -> None:
    svg = plot(
        "t",
        [Curve("c", [(1, 0), (10, 5), (100, 10)], "red")],
        Axis("x", 1, 100, is_log=True),
        Axis("y", 0, 10),
    )
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]+)"', svg)[0].split()]

    assert points == [(62.0, 268.0), (344.0, 154.0), (626.0, 40.0)]


def test_thinning_keeps_the_ends() -> None:
    points = [(float(n), float(n)) for n in range(10_001)]
    kept = thinned(points)

    assert len(kept) == 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_there_is_one_csv_row_per_call(tmp_path: Path) -> None:
    write_csv(tmp_path / "calls.csv", [record(0), refused(1)])

    with (tmp_path / "calls.csv").open() as lines:
        first, second = csv.DictReader(lines)
    assert list(first) == list(COLUMNS)
    assert (first["outcome"], first["ttft_ms"], first["tpot_ms"], first["content_chunks"]) == (
        "ok",
        "200.0",
        "50.0",
        "4",
    )
    assert (second["outcome"], second["reason"], second["ttft_ms"]) == ("refused", "429 queue_full", "")


@pytest.mark.parametrize(
    ("records", "slo", "collected", "code"),
    [
        ([record(0)], None, {}, 0),
        ([refused(0)], None, {}, 0),
        ([record(0)], SLO, {}, 0),
        ([refused(0)], SLO, {}, 1),
        ([record(0, lateness_s=0.051)], SLO, {}, 3),
        ([record(0)], SLO, {"pauses_s": [0.051]}, 3),
        ([record(0)], SLO, {"lost_workers": 1}, 3),
        ([record(0)], SLO, {"interrupted": True}, 130),
    ],
)
def test_the_exit_code_says_how_it_went(
    records: list[CallRecord], slo: Slo | None, collected: dict[str, Any], code: int
) -> None:
    assert finish(Collected(records, **collected), 1, slo, 0.05).exit_code == code


def test_planned_calls_without_a_result_make_a_run_invalid() -> None:
    done = finish(Collected([record(0)]), 3, SLO, 0.05)

    assert done.exit_code == 3
    assert done.report["calls"]["failed"] == 2
    assert "2 planned calls" in done.report["invalid_reasons"][0]


def test_the_verdict_for_people_says_which_limit_was_missed() -> None:
    shown = text(report_of([record(0, ttft_s=0.7, e2e_s=0.9)], SLO))

    assert "SLO ttft_p95_s ≤ 0.5: 0.700, MISSED" in shown
    assert "SLO e2e_p95_s ≤ 2: 0.900, met" in shown


# What arrives from a server.


def streamed(*lines: bytes) -> Answer:
    answer = Answer(status=200)
    for number, line in enumerate(lines):
        answer.read_line(line, float(number))
    answer.end_stream()
    return answer


def test_a_stream_is_timed_by_its_content_and_its_cost_is_read() -> None:
    answer = streamed(
        b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n',
        b"\n",
        b'data: {"choices": [{"delta": {"content": "a"}}]}\r\n',
        b'data:{"choices": [{"delta": {"content": "b"}}]}\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n',
        b': sprat {"cost_usd": 0.5, "saved_usd": -0.25}\n',
        b"data: [DONE]\n",
    )

    assert answer.outcome is Outcome.OK
    assert (answer.first_s, answer.last_s, answer.gaps_s) == (2.0, 3.0, [1.0])
    assert answer.usage == {"prompt_tokens": 7, "completion_tokens": 2}
    assert answer.cost == {"cost_usd": 0.5, "saved_usd": -0.25}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b'data: {"choices": [{"delta": {"content": "a"}}]}\n'], "broken"),
        ([b"data: [DONE]\n"], "empty"),
        ([b"data: {oops\n", b"data: [DONE]\n"], "protocol"),
        ([b"data: [1]\n", b"data: [DONE]\n"], "protocol"),
        (
            [b'data: {"error": {"code": "engine_lost", "message": "m"}}\n', b"data: [DONE]\n"],
            "stream engine_lost",
        ),
    ],
)
def test_what_is_wrong_with_a_stream_is_named(lines: list[bytes], reason: str) -> None:
    answer = streamed(*lines)

    assert (answer.outcome, answer.reason) == (Outcome.FAILED, reason)


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        (b'{"error": {"code": "queue_full", "message": "no  slot"}}', "429 queue_full", "no slot"),
        (b'{"error": {"type": "rate_limit", "message": "m"}}', "429 rate_limit", "m"),
        (b"<html>busy</html>", "429", "<html>busy</html>"),
        (b'{"error": "text"}', "429", '{"error": "text"}'),
    ],
)
def test_a_refusal_has_the_status_and_the_code(body: bytes, reason: str, message: str) -> None:
    answer = Answer(status=429)
    answer.read_refusal(body)

    assert (answer.outcome, answer.reason, answer.message) == (Outcome.REFUSED, reason, message)


def test_a_whole_answer_needs_content_or_a_tool_call() -> None:
    good, tool, empty = Answer(status=200), Answer(status=200), Answer(status=200)
    good.read_whole(b'{"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 1}}')
    tool.read_whole(b'{"choices": [{"message": {"content": null, "tool_calls": [{}]}}]}')
    empty.read_whole(b'{"choices": [{"message": {"content": ""}}]}')

    assert (good.outcome, tool.outcome, empty.reason) == (Outcome.OK, Outcome.OK, "empty")
    assert good.usage == {"completion_tokens": 1}
