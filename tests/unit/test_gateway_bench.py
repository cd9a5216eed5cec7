"""The bench's arithmetic, and one short run against stubs on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from time import process_time
from xml.etree import ElementTree as ET

import psutil
import pytest

from loadtest.__main__ import main
from loadtest.call import Call, CallError, ErrorKind
from loadtest.closed_loop import Tally
from loadtest.cpu_time import cpu_s, rss_bytes
from loadtest.gateway_bench import Plan, run
from loadtest.many_streams import many_streams
from loadtest.percentiles import nearest_rank
from loadtest.plot import COLOURS, plot
from loadtest.rows import row, with_added
from loadtest.saved_report import save
from loadtest.stub_engine import serve
from loadtest.systems import Mode, Skip, System, parse_skip, parse_system
from loadtest.table import table
from loadtest.turns import pause, resume, turn_of

REQUIRED_FIELDS = {
    *("system", "mode", "concurrency", "requests_per_s", "p50_ms", "p99_ms"),
    *("ttft_p50_ms", "cpu_us_per_request", "errors"),
}


class TestNearestRank:
    @pytest.mark.parametrize(
        ("count", "percent", "wanted"),
        [
            (1, 50, 1),
            (1, 99, 1),
            (2, 50, 1),
            (4, 50, 2),
            (5, 50, 3),
            (99, 99, 99),
            (100, 99, 99),
            (200, 99, 198),
        ],
    )
    def test_of_the_numbers_from_1_up(self, count, percent, wanted):
        assert nearest_rank(range(1, count + 1), percent) == wanted

    def test_of_nothing(self):
        assert nearest_rank([], 50) is None


def tally(**fields) -> Tally:
    return Tally(**({"concurrency": 2} | fields))


class TestTally:
    def test_calls_add_up_and_errors_stay_apart(self):
        total = tally()
        total.add(Call(200, done_s=0.3, e2e_s=0.2, ttft_s=0.1, itl_s=(0.04, 0.06), output_tokens=3))
        total.add(Call(200, done_s=0.1, e2e_s=0.1, output_tokens=3))
        total.add(Call(429, done_s=0.1, ttft_s=0.05, error=CallError(ErrorKind.STATUS, "slow down")))
        assert total.e2e_s == [0.2, 0.1]
        assert total.ttft_s == [0.1]
        assert total.itl_s == [0.04, 0.06]
        assert total.output_tokens == 6
        assert (total.errors, total.first_error) == (Counter(status=1), "slow down")


class TestRow:
    def test_figures(self):
        made = row(
            "sprat",
            Mode.STREAM,
            tally(
                e2e_s=[0.004, 0.002, 0.003, 0.001],
                ttft_s=[0.0015, 0.0005],
                window_s=0.5,
                in_window=3,
                cpu_s=0.001,
                errors=Counter(status=1),
                output_tokens=8,
            ),
        )
        assert made["requests_per_s"] == 6.0  # the fourth ended after the window
        assert (made["p50_ms"], made["p99_ms"]) == (2.0, 4.0)
        assert (made["ttft_p50_ms"], made["ttft_p99_ms"]) == (0.5, 1.5)
        assert made["cpu_us_per_request"] == 200.0  # failed calls cost time too
        assert (made["n"], made["errors"], made["error_kinds"]) == (4, 1, {"status": 1})
        assert made["output_tokens_per_request"] == 2.0
        assert made.keys() >= REQUIRED_FIELDS

    def test_processor_time_and_memory(self):
        spent = {
            "e2e_s": [0.1] * 4,
            "output_tokens": 8,
            "window_s": 1.0,
            "cpu_s": 0.004,
            "store_cpu_s": 0.002,
            "client_cpu_s": 0.001,
            "rss_bytes": 3 * 2**20,
        }
        streamed, whole = row("sprat", Mode.STREAM, tally(**spent)), row("sprat", Mode.UNARY, tally(**spent))
        assert (streamed["cpu_us_per_request"], streamed["cpu_us_per_chunk"]) == (1000.0, 500.0)
        assert streamed["store_cpu_us_per_request"] == 500.0
        assert streamed["client_cpu_us_per_request"] == 250.0
        assert streamed["rss_mib"] == 3.0
        assert whole["cpu_us_per_chunk"] is None

    def test_nothing_but_errors_is_a_row_too(self):
        made = row("sprat", Mode.UNARY, tally(window_s=1.0, errors=Counter(connect=7), cpu_s=None))
        assert (made["requests_per_s"], made["n"], made["errors"]) == (0.0, 0, 7)
        assert made["p50_ms"] is made["ttft_p50_ms"] is made["cpu_us_per_request"] is None


class TestAdded:
    def rows(self) -> list[dict]:
        fast, slow = (
            tally(e2e_s=[0.001], ttft_s=[0.0005], window_s=1),
            tally(e2e_s=[0.004], ttft_s=[0.002], window_s=1),
        )
        other = Tally(concurrency=16, e2e_s=[0.009], ttft_s=[0.009], window_s=1)
        return [
            row("sprat", Mode.STREAM, slow),
            row("direct", Mode.STREAM, fast),
            row("sprat", Mode.UNARY, slow),
            row("sprat", Mode.STREAM, other),
        ]

    def test_the_baseline_is_that_of_the_same_cell(self):
        same_cell, baseline, other_mode, other_concurrency = with_added(self.rows())
        assert (same_cell["added_ttft_p50_ms"], same_cell["added_ttft_p99_ms"]) == (1.5, 1.5)
        assert same_cell["added_p50_ms"] == 3.0
        assert baseline["added_ttft_p50_ms"] == 0.0
        assert other_mode["added_ttft_p50_ms"] is None
        assert other_concurrency["added_ttft_p50_ms"] is None


class TestCommandLine:
    def test_a_system(self):
        text = (
            "name=a,url=http://h:1,key=K,model=m,pid=1,pid=22,store_pid=3,model_paced=p,url_paced=http://h:2"
        )
        system = parse_system(text)
        assert (system.name, system.pids, system.store_pids) == ("a", (1, 22), (3,))
        assert (system.endpoint(Mode.STREAM).port, system.model_for(Mode.STREAM)) == (1, "m")
        assert (system.endpoint(Mode.STREAM_PACED).port, system.model_for(Mode.STREAM_PACED)) == (2, "p")

    def test_paced_needs_something_that_is_paced(self):
        system = parse_system("name=direct,url=http://h:1,key=K,model=m")
        assert system.reason_against(Mode.STREAM) is None
        assert "model_paced" in system.reason_against(Mode.STREAM_PACED)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("name=a,url=http://h:1,key=K", "model missing"),
            ("name=a,url=http://h:1,key=K,model=m,speed=9", "unknown field 'speed'"),
            ("name=a,url=http://h:1,key=K,model=m,model=n", "model stands there twice"),
            ("name=a,url=http://h:1,key=K,model=m,pid=x", "pid=x"),
            ("name=a,url=http://h:1,key=K,model=m,store_pid=x", "store_pid=x"),
            ("name=a,url=h:1,key=K,model=m", "use http://"),
            ("direct", "'direct' is not name=value"),
        ],
    )
    def test_what_is_wrong_with_a_system_is_told(self, text, complaint):
        with pytest.raises(ValueError, match=complaint):
            parse_system(text)

    def test_a_skip(self):
        assert parse_skip("litellm=no wheel, sadly") == Skip("litellm", "no wheel, sadly")
        with pytest.raises(ValueError, match="--skip"):
            parse_skip("litellm")

    @pytest.mark.parametrize("option", [["--modes", "fast"], ["--concurrency", "0"], ["--seconds", "0"]])
    def test_a_wrong_option_ends_with_usage(self, option, capsys):
        with pytest.raises(SystemExit):
            main(["bench-gateway", "--system", "name=a,url=http://h:1,key=K,model=m", *option])
        assert "error:" in capsys.readouterr().err


class TestCpuTime:
    def test_of_this_process_grows_with_work(self):
        before_s = cpu_s([os.getpid()])
        while cpu_s([os.getpid()]) == before_s:
            sum(range(10_000))

    def test_is_that_of_the_process_to_the_microsecond(self):
        before_s, own_s = cpu_s([os.getpid()]), process_time()
        sum(range(100_000))
        assert cpu_s([os.getpid()]) - before_s == pytest.approx(process_time() - own_s, abs=0.0005)

    def test_is_unknown_without_a_process(self):
        assert cpu_s([]) is rss_bytes([]) is None
        assert cpu_s([os.getpid(), NO_PROCESS]) is rss_bytes([os.getpid(), NO_PROCESS]) is None

    def test_memory_grows_with_what_is_held(self):
        before_bytes = rss_bytes([os.getpid()])
        held = b"x" * 50_000_000
        assert rss_bytes([os.getpid()]) - before_bytes > 0.9 * len(held)


NO_PROCESS = 2**22 + 1
"""More than Linux ever gives."""

ANSWER = b'{"choices":[{"message":{"content":"cod"}}],"usage":{"completion_tokens":1}}'
EVENTS = b'data: {"choices":[{"delta":{"content":"cod"}}]}\n\n' * 4 + b"data: [DONE]\n\n"


@asynccontextmanager
async def stub(delay_s: float, status: str = "200 OK") -> AsyncIterator[str]:
    """Answers after the delay, streamed if the request asks for it."""

    serving: list[asyncio.Task] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                streamed = b'"stream": true' in await reader.readexactly(length)
                await asyncio.sleep(delay_s)
                kind, body = (b"text/event-stream", EVENTS) if streamed else (b"application/json", ANSWER)
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
                    % (status.encode(), kind, len(body), body)
                )
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*serving), 5)


class TestRun:
    async def test_a_short_run(self):
        async with stub(0.002) as near, stub(0.012) as far, stub(0, "503 Service Unavailable") as ill:
            plan = Plan(
                systems=(
                    System("direct", near, "K", "m", pids=(os.getpid(),), url_paced=near),
                    System("sprat", far, "K", "m"),
                    System("ill", ill, "K", "m"),
                    System("left-out", near, "K", "m"),
                ),
                modes=(Mode.UNARY, Mode.STREAM, Mode.STREAM_PACED),
                concurrencies=(1, 3),
                seconds_s=0.2,
                slice_s=0.05,
                warm_up_s=0.02,
                skips=(Skip("left-out", "told so"), Skip("absent", "no wheel")),
                cores=7,
                pinning="apart",
                idle_cpu_percent=(("sprat", 0.5),),
                versions=(("sprat", "0.1.0"),),
            )
            told: list[str] = []
            report = await run(plan, tell=told.append)
        cells = {(each["mode"], each["concurrency"], each["system"]): each for each in report["rows"]}
        assert set(cells) == {
            *(
                (mode, c, name)
                for mode in ("unary", "stream")
                for c in (1, 3)
                for name in ("direct", "sprat")
            ),
            *(("stream-paced", c, "direct") for c in (1, 3)),
        }
        assert all(each.keys() >= REQUIRED_FIELDS and each["n"] > 0 for each in report["rows"])
        assert 9 <= cells["unary", 1, "sprat"]["added_p50_ms"] < 100
        assert 9 <= cells["stream", 3, "sprat"]["added_ttft_p50_ms"] < 100
        assert cells["unary", 1, "sprat"]["added_ttft_p50_ms"] is None
        assert cells["unary", 1, "sprat"]["cpu_us_per_request"] is None
        assert cells["unary", 1, "direct"]["cpu_us_per_request"] is not None
        assert cells["unary", 3, "sprat"]["requests_per_s"] > 2 * cells["unary", 1, "sprat"]["requests_per_s"]
        skipped = {(each["system"], each.get("mode")): each["reason"] for each in report["skipped"]}
        assert skipped["left-out", None] == "told so"
        assert skipped["absent", None] == "no wheel"
        assert skipped["ill", "unary"].startswith("first unary call: status: 503")
        assert "url_paced" in skipped["sprat", "stream-paced"]
        assert report["versions"]["sprat"] == "0.1.0"
        assert (report["cores"], report["pinning"], report["idle_cpu_percent"]) == (
            7,
            "apart",
            {"sprat": 0.5},
        )
        assert {"date", "versions", "note"} <= report.keys()
        assert table(report).count("\n") >= len(report["rows"])
        assert told

    async def test_from_the_command_line(self):
        async with stub(0) as url:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadtest", "bench-gateway"),
                *("--system", f"name=direct,url={url},key=K,model=m", "--skip", "litellm=no wheel"),
                *("--seconds", "0.1", "--slice-seconds", "0.05", "--warm-up-seconds", "0.02"),
                *("--concurrency", "2", "--modes", "unary,stream", "--json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate()
        assert process.returncode == 0
        report = json.loads(out)
        assert [(each["mode"], each["errors"]) for each in report["rows"]] == [("unary", 0), ("stream", 0)]
        assert report["skipped"] == [{"system": "litellm", "reason": "no wheel"}]


class TestTurns:
    @pytest.fixture
    def restless(self) -> Iterator[System]:
        process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        yield System("ray-serve", "http://127.0.0.1:9", "K", "m", pause_pids=(process.pid, NO_PROCESS))
        process.kill()
        process.wait()

    async def until_stopped(self, system: System, *, stopped: bool = True) -> None:
        """A signal takes a moment to arrive."""
        process = psutil.Process(system.pause_pids[0])
        async with asyncio.timeout(5):
            while (process.status() == psutil.STATUS_STOPPED) is not stopped:
                await asyncio.sleep(0.01)

    async def test_a_system_runs_in_its_turn_only(self, restless):
        pause(restless)
        await self.until_stopped(restless)
        async with turn_of(restless):
            await self.until_stopped(restless, stopped=False)
        await self.until_stopped(restless)
        resume(restless)
        await self.until_stopped(restless, stopped=False)

    async def test_it_is_stopped_again_after_an_error(self, restless):
        with pytest.raises(ZeroDivisionError):
            async with turn_of(restless):
                raise ZeroDivisionError
        await self.until_stopped(restless)

    async def test_all_run_when_the_bench_has_ended(self, restless):
        report = await run(Plan(systems=(restless,), modes=(Mode.UNARY,), timeout_s=1), tell=lambda _: None)
        assert report["skipped"][0]["system"] == "ray-serve"  # nobody listens there
        await self.until_stopped(restless, stopped=False)


@asynccontextmanager
async def stub_engine() -> AsyncIterator[str]:
    server = await serve(0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        await server.wait_closed()


class TestManyStreams:
    async def test_the_worst_stream_is_told_from_the_others(self):
        async with stub_engine() as url:
            steady = System("direct", url, "K", "paced", model_paced="paced")
            hurried = System("sprat", url, "K", "at-once", model_paced="at-once", pids=(os.getpid(),))
            measured = await many_streams((steady, hurried), 6, timeout_s=10, seconds_s=0.4)
        direct, other = measured["rows"]
        assert (measured["streams"], measured["tokens_each"]) == (6, 12)
        assert (direct["n"], direct["errors"], other["n"]) == (6, 0, 6)
        assert direct["itl_p50_ms"] == pytest.approx(1000 / 30, rel=0.1)
        assert direct["worst_stream_itl_p99_ms"] >= direct["median_stream_itl_p99_ms"] > 30
        assert direct["worst_vs_direct"] == 1.0
        assert other["worst_vs_direct"] < 1
        assert other["cpu_us_per_chunk"] > 0
        assert other["rss_mib"] > 1
        assert direct["rss_mib"] is None

    async def test_a_stream_that_fails_is_an_error_and_no_gap(self):
        async with stub(0, "503 Service Unavailable") as url:
            measured = await many_streams(
                (System("sprat", url, "K", "m", url_paced=url),), 3, 1, seconds_s=0.1
            )
        (only,) = measured["rows"]
        assert (only["n"], only["errors"], only["worst_stream_itl_p99_ms"]) == (0, 3, None)
        assert "503" in only["first_error"]


def a_report() -> dict:
    fast, slow = tally(e2e_s=[0.001], window_s=1, cpu_s=0.001), tally(e2e_s=[0.004], window_s=1, cpu_s=0.002)
    rows = [row("direct", Mode.UNARY, fast), row("a<b", Mode.UNARY, slow), row("a<b", Mode.STREAM, slow)]
    return {
        "date": "2026-11-22T10:00:00+00:00",
        "cores": 2,
        "pinning": None,
        "seconds_per_cell": 1.0,
        "rows": with_added(rows),
        "skipped": [],
    }


class TestPlot:
    def test_is_an_image_of_its_own_with_every_system(self):
        drawn = plot(a_report())
        image = ET.fromstring(drawn)
        texts = [each.text for each in image.iter("{http://www.w3.org/2000/svg}text")]
        assert {"direct", "a<b", "unary: requests per second", "stream: CPU µs per chunk"} <= set(texts)
        assert "2026-11-22" in texts[0]
        assert "href" not in drawn
        assert drawn.count("http") == 1  # the namespace

    def test_a_larger_value_stands_higher(self):
        image = ET.fromstring(plot(a_report()))
        dots = {dot[0].text: float(dot.get("cy")) for dot in image.iter("{http://www.w3.org/2000/svg}circle")}
        assert dots["a<b, c=2: 2,000"] < dots["direct, c=2: 1,000"]

    def test_no_two_systems_share_a_colour(self):
        assert len(set(COLOURS)) == len(COLOURS) >= 6


class TestSave:
    def test_the_report_comes_back_and_the_plot_lies_beside_it(self, tmp_path):
        report = a_report()
        table_file, picture = save(report, tmp_path)
        assert (table_file.name, picture.name) == ("2026-11-22-gateway.json", "2026-11-22-gateway.svg")
        assert json.loads(table_file.read_text()) == report
        assert picture.read_text() == plot(report)
