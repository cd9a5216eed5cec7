"""`sprat bench gateway` in small: the real gateway and Valkey, the stub engine. No figures, no rivals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.contract

FIELDS = {
    *("system", "mode", "concurrency", "requests_per_s", "p50_ms", "p99_ms", "ttft_p50_ms"),
    *("cpu_us_per_request", "cpu_us_per_chunk", "client_cpu_us_per_request", "store_cpu_us_per_request"),
    *("rss_mib", "errors", "added_p50_ms", "added_ttft_p50_ms"),
}
COMMAND = (sys.executable, "-m", "deployments.cli.main", "bench", "gateway", "--systems", "direct,sprat")


def test_direct_and_sprat_are_compared_with_full_admission():
    command = [*COMMAND, "--seconds", "1", "--concurrency", "1,8", "--modes", "unary,stream", "--json"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["skipped"] == []
    rows = {(row["system"], row["mode"], row["concurrency"]): row for row in report["rows"]}
    assert rows.keys() == {
        (system, mode, concurrency)
        for system in ("direct", "sprat")
        for mode in ("unary", "stream")
        for concurrency in (1, 8)
    }
    for row in rows.values():
        assert row.keys() >= FIELDS
        assert (row["errors"], row["error_kinds"]) == (0, {})
        assert row["n"] > 5
        assert row["output_tokens_per_request"] == 32
        assert row["client_cpu_us_per_request"] > 0
        assert row["rss_mib"] > 10
        streamed = row["mode"] == "stream"
        assert (row["ttft_p50_ms"] is not None) is streamed
        assert (row["cpu_us_per_chunk"] is not None) is streamed
        if row["system"] == "sprat":
            assert row["store_cpu_us_per_request"] > 20, "no admission and no settlement in Valkey"
    assert report["idle_cpu_percent"].keys() == {"direct", "sprat"}
    assert report["versions"]["sprat"]
    assert (report["pinning"] == "none") is (len(os.sched_getaffinity(0)) < 2)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_is_told_to_end(how):
    process = subprocess.Popen([*COMMAND, "--seconds", "30"], stderr=subprocess.PIPE, text=True)
    started = psutil.Process(process.pid)
    deadline_s = time.monotonic() + 60
    while len(tree := started.children(recursive=True)) < 4:  # stub, Valkey, gateway, load generator
        assert time.monotonic() < deadline_s
        time.sleep(0.1)

    process.send_signal(how)
    _, said = process.communicate(timeout=30)

    assert process.returncode in {128 + signal.SIGTERM, 130}, said
    assert "Traceback" not in said
    assert psutil.wait_procs(tree, timeout=5)[1] == []
