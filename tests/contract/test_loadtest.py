"""`python -m loadtest run` as a process, against a server whose timing is known."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from deployments.free_port import free_port
from loadtest.percentiles import nearest_rank

CHUNK_GAP_S = 0.1
REFUSED_KEY = "refused"


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


async def _answer(request: web.Request) -> web.StreamResponse:
    """`max_tokens` small chunks, the first at once, then one each 100 ms (`fast`: all at once). The chunk
    that only has a role comes before; it is no content."""
    body = await request.json()
    tokens = body["max_tokens"]
    prompt_tokens = len(body["messages"][0]["content"].split()) + 3
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    if request.headers["authorization"] == f"Bearer {REFUSED_KEY}":
        return web.json_response({"error": {"code": "queue_full", "message": "no slot"}}, status=429)
    headers = {"x-sprat-tier": "small", "x-sprat-request-id": "r1"}
    if not body.get("stream"):
        headers |= {"x-sprat-cost-usd": "0.5", "x-sprat-saved-usd": "1.5"}
        choice = {"message": {"content": "x"}}
        return web.json_response({"choices": [choice], "usage": usage}, headers=headers)
    response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
    await response.prepare(request)
    await response.write(_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
    for number in range(tokens):
        if number and body["model"] != "fast":
            await asyncio.sleep(CHUNK_GAP_S)
        await response.write(_event({"choices": [{"delta": {"content": "a"}}]}))
    await response.write(_event({"choices": [], "usage": usage}))
    await response.write(b': sprat {"cost_usd": 0.5, "saved_usd": 1.5}\n\n')
    await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Runs in a thread; the load comes from another process."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    port = free_port()

    async def serve() -> web.AppRunner:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", _answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        started.set()
        return runner

    def work() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@dataclass(frozen=True)
class Done:
    code: int
    report: dict[str, Any]
    said: str


def command(server: str, arguments: str, *paths: str) -> list[str]:
    """Lateness has a test of its own; elsewhere a busy machine must not make the run invalid."""
    patient = [] if "--max-lateness-ms" in arguments else ["--max-lateness-ms", "5000"]
    start = [sys.executable, "-m", "loadtest", "run", "--endpoint", server, "--json"]
    return [*start, *arguments.split(), *patient, *paths]


def load(server: str, arguments: str, *paths: str) -> Done:
    asked = command(server, arguments, *paths)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return Done(done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr)


@contextmanager
def running(asked: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Gone afterwards, with its workers, also when the test fails."""
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_small_chunks_are_timed_when_they_come(server: str) -> None:
    """Locust's own `iter_lines` waits for 1,024 bytes: it reports a TTFT of two seconds here."""
    done = load(server, "--workload poisson:10 --limit 12 --lengths 20,8")

    assert done.code == 0, done.said
    assert done.report["ttft_ms"]["n"] == 12
    assert done.report["ttft_ms"]["p50"] < 50
    assert 1000 * CHUNK_GAP_S <= done.report["itl_ms"]["p50"] < 1000 * CHUNK_GAP_S + 30
    assert done.report["itl_ms"]["n"] == 12 * 7
    assert done.report["tpot_ms"]["p50"] == pytest.approx(done.report["itl_ms"]["mean"], rel=0.1)
    assert done.report["e2e_ms"]["p50"] >= 700


def test_calls_start_at_their_time_however_long_the_others_take(server: str, tmp_path: Path) -> None:
    """40 calls in one second, each of which takes one: a closed loop or a pool would start them later by
    many seconds."""
    done = load(
        server,
        "--workload poisson:40 --limit 40 --lengths 20,11",
        *("--csv", str(tmp_path / "calls.csv")),
    )

    assert done.code == 0, done.said
    lateness_ms = [float(row["lateness_ms"]) for row in rows(tmp_path / "calls.csv")]
    assert all(each >= 0 for each in lateness_ms)
    assert done.report["lateness_ms"]["p99"] == max(lateness_ms) < 500
    assert done.report["window_s"] < 3


def test_a_late_generator_makes_the_run_invalid(server: str) -> None:
    done = load(server, "--workload poisson:50 --limit 10 --lengths 20,1 --max-lateness-ms 0.001")

    assert done.code == 3
    assert done.report["valid"] is False
    assert "calls started late" in done.report["invalid_reasons"][0]


def test_two_processes_make_every_call_once_and_their_records_are_merged_raw(
    server: str, tmp_path: Path
) -> None:
    done = load(
        server,
        "--workload poisson:60 --limit 61 --lengths 20,3 --model fast --processes 2",
        *("--csv", str(tmp_path / "calls.csv")),
    )
    calls = rows(tmp_path / "calls.csv")

    assert done.code == 0, done.said
    assert done.report["workers"] == 2
    assert [int(row["index"]) for row in calls] == list(range(61))
    assert all(int(row["index"]) % 2 == int(row["worker"]) for row in calls)
    e2e_ms = sorted(float(row["e2e_ms"]) for row in calls)
    assert done.report["e2e_ms"]["p99"] == nearest_rank(e2e_ms, 99)
    assert done.report["e2e_ms"]["p50"] == nearest_rank(e2e_ms, 50)


def test_refusals_tenants_cost_and_files(server: str, tmp_path: Path) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text(f"- {{name: good, key: k1, task: classify}}\n- {{name: bad, key: {REFUSED_KEY}}}\n")
    html = tmp_path / "report.html"

    done = load(
        server,
        "--workload gamma:80,2 --limit 40 --lengths 30,2 --model fast --slo e2e_p95_s=5",
        *("--mix", str(mix), "--html", str(html)),
    )

    assert done.code == 1, done.said
    tenants = {row["name"]: row for row in done.report["tenants"]}
    bad = tenants["bad"]["refused"]
    assert 0 < bad == tenants["bad"]["due"] == done.report["refusals"][0]["count"]
    assert done.report["refusals"][0]["reason"] == "429 queue_full"
    assert tenants["good"]["ok"] == 40 - bad
    assert done.report["slo_attainment"] == (40 - bad) / 40
    assert done.report["cost_usd"] == 0.5 * (40 - bad)
    assert done.report["saved_usd"] == 1.5 * (40 - bad)
    assert done.report["prompt_tokens"]["mean_error"] == 3.0
    assert "429 queue_full" in html.read_text()


def test_whole_answers_carry_cost_in_their_headers(server: str) -> None:
    done = load(server, "--workload closed:2 --limit 6 --lengths 20,4 --unary --slo e2e_p95_s=5")

    assert done.code == 0, done.said
    assert done.report["calls"]["ok"] == 6
    assert done.report["cost_usd"] == 3.0
    assert done.report["ttft_ms"]["n"] == 0


def test_a_closed_loop_has_as_many_calls_in_flight_as_users(server: str, tmp_path: Path) -> None:
    done = load(
        server,
        "--workload closed:3 --duration 2s --lengths 20,4 --processes 2",
        *("--csv", str(tmp_path / "calls.csv")),
    )
    calls = [(float(row["intended_s"]), float(row["e2e_ms"]) / 1000) for row in rows(tmp_path / "calls.csv")]

    assert done.code == 0, done.said
    most = max(sum(begin <= at < begin + length for begin, length in calls) for at, _ in calls)
    assert most == 3
    assert max(begin for begin, _ in calls) < 2.0
    assert len({row["index"] for row in rows(tmp_path / "calls.csv")}) == len(calls)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--workload azure-code --traces . --limit 1", "AzureLLMInferenceTrace_code.csv"),
        ("--workload poisson:1", "--duration or --limit"),
        ("--workload poisson:1 --limit 1 --slo ttft_p50_s=1", "keys are"),
        ("--workload closed:1 --limit 1 --processes 2", "fewer users"),
        ("--workload poisson:1 --limit 1 --html nowhere/report.html", "cannot be written"),
    ],
)
def test_bad_input_ends_with_2_and_says_what_to_do(
    server: str, tmp_path: Path, arguments: str, expected: str
) -> None:
    empty = {name: value for name, value in os.environ.items() if name != "SPRAT_TRACES"}
    done = subprocess.run(
        command(server, arguments),
        cwd=tmp_path,
        env=empty | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert expected in done.stderr


def test_a_server_that_is_not_there_is_bad_input() -> None:
    done = load(f"http://127.0.0.1:{free_port()}", "--workload poisson:5 --limit 3")

    assert done.code == 2
    assert "refused" in done.said


@pytest.mark.parametrize(("seed", "code", "ok"), [("1", 0, 10), ("2", 2, None)])
def test_a_worker_from_elsewhere_needs_the_same_plan(
    server: str, seed: str, code: int, ok: int | None
) -> None:
    port = free_port()
    same = f"--workload poisson:20 --limit 10 --lengths 20,2 --master-port {port}"
    with running(command(server, f"{same} --master")) as master:
        _wait_until(lambda: _is_open(port))
        with running(command(server, f"{same} --worker --seed {seed}")) as worker:
            out, said = master.communicate(timeout=20)
            worker.communicate(timeout=20)

    report = json.loads(out or "{}")
    assert master.returncode == code
    assert report.get("calls", {}).get("ok") == ok
    assert code == 0 or "its plan differs" in said


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def _rows_of_page(port: int) -> list[dict[str, Any]]:
    """What Locust's page shows in our tab; nothing while it is not there yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=5) as answer:
            return json.load(answer)["extended_stats"][0]["data"]
    except OSError:
        return []


@pytest.mark.parametrize(("processes", "how"), [("1", "ctrl-c"), ("2", "ctrl-c"), ("2", "stop button")])
def test_the_live_page_has_our_rows_and_an_interrupt_writes_the_report(
    server: str, tmp_path: Path, processes: str, how: str
) -> None:
    port, html = free_port(), tmp_path / "report.html"
    arguments = (
        f"--workload poisson:20 --duration 600s --lengths 20,8 --web-port {port} --processes {processes}"
    )
    with running(command(server, arguments, "--html", str(html))) as process:
        _wait_until(lambda: bool(_rows_of_page(port)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            page = answer.read().decode()
        shown = _rows_of_page(port)[0]
        children = psutil.Process(process.pid).children()
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        else:
            with suppress(ConnectionError):  # the page ends with the run, maybe before it answers
                urllib.request.urlopen(f"http://127.0.0.1:{port}/stop", data=b"", timeout=20).close()
        out, _ = process.communicate(timeout=20)

    report = json.loads(out)
    assert "Tokens, SLO and money" in page
    assert process.returncode == 130
    assert shown["name"] == "all"
    assert shown["ttft_p50_ms"] < 50
    assert report["interrupted"] is True
    assert report["calls"]["ok"] >= shown["ok"] > 0
    assert report["calls"]["failed"] == 0
    assert report["calls"]["in_flight_at_interrupt"] > 0
    assert "Interrupted" in html.read_text()
    assert not any(child.is_running() for child in children)


def test_a_worker_that_dies_makes_the_run_invalid(server: str) -> None:
    arguments = "--workload poisson:20 --limit 100 --lengths 20,2 --processes 2"
    with running(command(server, arguments)) as process:
        _wait_until(lambda: len(psutil.Process(process.pid).children()) == 2)
        time.sleep(2.5)
        psutil.Process(process.pid).children()[0].kill()
        out, _ = process.communicate(timeout=40)

    report = json.loads(out)
    assert process.returncode == 3
    assert "1 worker(s) vanished" in report["invalid_reasons"][0]
    assert report["calls"]["due"] == 100
    assert 0 < report["calls"]["failed"] < 100
