"""Tallies → rows, with the names that COMMANDS.md fixes for `sprat bench gateway --json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loadtest.closed_loop import Tally
from loadtest.percentiles import nearest_rank
from loadtest.systems import BASELINE, Mode

Row = dict[str, Any]

# Times that are compared with the baseline's, under `added_` and the same name.
COMPARED = ("p50_ms", "p99_ms", "ttft_p50_ms", "ttft_p99_ms")


def row(system: str, mode: Mode, tally: Tally) -> Row:
    """Times and rates are of calls that succeeded, the rate while all callers were at work; processor time is
    shared by all calls."""
    succeeded = len(tally.e2e_s)
    failed = tally.errors.total()
    e2e_s, ttft_s, itl_s = sorted(tally.e2e_s), sorted(tally.ttft_s), sorted(tally.itl_s)
    return {
        "system": system,
        "mode": mode.value,
        "concurrency": tally.concurrency,
        "requests_per_s": round(tally.in_window / tally.window_s, 1) if tally.window_s else 0.0,
        "p50_ms": _ms(nearest_rank(e2e_s, 50)),
        "p99_ms": _ms(nearest_rank(e2e_s, 99)),
        "ttft_p50_ms": _ms(nearest_rank(ttft_s, 50)),
        "ttft_p99_ms": _ms(nearest_rank(ttft_s, 99)),
        "itl_p50_ms": _ms(nearest_rank(itl_s, 50)),
        "itl_p99_ms": _ms(nearest_rank(itl_s, 99)),
        "cpu_us_per_request": _us(tally.cpu_s, succeeded + failed),
        "cpu_us_per_chunk": None if mode is Mode.UNARY else _us(tally.cpu_s, tally.output_tokens),
        "store_cpu_us_per_request": _us(tally.store_cpu_s, succeeded + failed),
        "client_cpu_us_per_request": _us(tally.client_cpu_s, succeeded + failed),
        "rss_mib": None if tally.rss_bytes is None else round(tally.rss_bytes / 2**20, 1),
        "output_tokens_per_request": round(tally.output_tokens / succeeded, 1) if succeeded else None,
        "n": succeeded,
        "errors": failed,
        "error_kinds": dict(tally.errors),
        "first_error": tally.first_error,
    }


def with_added(rows: Iterable[Row]) -> list[Row]:
    """Each row with what its system adds to the baseline of the same mode and concurrency: the difference
    of two percentiles, not the percentile of differences."""
    kept = list(rows)
    baselines = {(each["mode"], each["concurrency"]): each for each in kept if each["system"] == BASELINE}
    return [each | _added(each, baselines.get((each["mode"], each["concurrency"]))) for each in kept]


def _added(each: Row, baseline: Row | None) -> Row:
    added: Row = {}
    for name in COMPARED:
        own, other = each[name], baseline[name] if baseline else None
        added[f"added_{name}"] = None if own is None or other is None else round(own - other, 3)
    return added


def _us(cpu_s: float | None, count: int) -> float | None:
    return None if cpu_s is None or not count else round(cpu_s * 1e6 / count, 1)


def _ms(seconds_s: float | None) -> float | None:
    return None if seconds_s is None else round(seconds_s * 1000, 3)
