"""The report for a terminal."""

from __future__ import annotations

from typing import Any

LATENCIES = (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("TPOT", "tpot_ms"), ("E2E", "e2e_ms"))
QUANTILES = ("p50", "p90", "p95", "p99", "max")


def text(report: dict[str, Any]) -> str:
    calls = report["calls"]
    lines = [
        f"{report['workload']} at {report['rate']}, {report['date']}",
        f"{report['endpoint']}, model {report['model']}",
        f"calls {calls['due']}: {calls['ok']} ok, {calls['refused']} refused, {calls['failed']} failed",
        _rates_line(report),
        "",
        "ms".ljust(8) + "".join(name.rjust(11) for name in (*QUANTILES, "n")),
        *(_latency_line(title, report[field]) for title, field in LATENCIES),
        _latency_line("late", report["lateness_ms"]),
        _latency_line("paused", report["generator_pauses_ms"]),
        "",
    ]
    lines += [
        f"{row['count']} times {row['reason']}: {row['first_message']}"
        for row in (*report["refusals"], *report["failures"])
    ]
    lines += [_group_line("tier", row) for row in report["tiers"]]
    lines += [_group_line("tenant", row) for row in report["tenants"]]
    lines.append(_tokens_line(report))
    if report["cost_usd"] is not None:
        saved = "" if report["saved_usd"] is None else f", saved {report['saved_usd']:.6f} USD"
        lines.append(f"cost {report['cost_usd']:.6f} USD{saved} against the large tier")
    lines += verdict_lines(report)
    return "\n".join(lines)


def verdict_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["slo"] is not None:
        for row in report["slo"]["limits"]:
            verdict = "met" if row["met"] else "MISSED"
            measured = "not reached" if row["measured"] is None else f"{row['measured']:.3f}"
            lines.append(f"SLO {row['key']} ≤ {row['limit']:g}: {measured}, {verdict}")
        lines.append(
            f"SLO met by {100 * (report['slo_attainment'] or 0):.2f} % of the calls that were due, "
            f"goodput {_number(report['goodput_per_s'])}/s"
        )
    if report["interrupted"]:
        running = report["calls"]["in_flight_at_interrupt"]
        lines.append(f"interrupted; {running} calls were in flight and are not counted")
    lines += [f"INVALID: {reason}" for reason in report["invalid_reasons"]]
    return lines


def _rates_line(report: dict[str, Any]) -> str:
    return (
        f"{_number(report['requests_per_s'])} requests/s of {_number(report['offered_per_s'])} offered, "
        f"{_number(report['output_tokens_per_s'])} output tokens/s over {report['window_s']:.1f} s"
    )


def _latency_line(title: str, distribution: dict[str, Any]) -> str:
    cells = "".join(_number(distribution[name]).rjust(11) for name in QUANTILES)
    return f"{title:<8}{cells}{distribution['n']:>11}"


def _group_line(kind: str, row: dict[str, Any]) -> str:
    cost = "" if row["cost_usd"] is None else f", cost {row['cost_usd']:.6f} USD"
    return (
        f"{kind} {row['name']}: {row['due']} calls, {row['ok']} ok, {row['refused']} refused, "
        f"TTFT p50/p95 {_number(row['ttft_ms']['p50'])}/{_number(row['ttft_ms']['p95'])} ms{cost}"
    )


def _tokens_line(report: dict[str, Any]) -> str:
    parts = []
    for kind in ("prompt", "output"):
        tokens = report[f"{kind}_tokens"]
        clipped = report["clipped"][f"{kind}s"]
        parts.append(
            f"{kind} tokens per call: {_number(tokens['mean_reported'])} by usage, "
            f"{_number(tokens['mean_planned'])} planned, {clipped} clipped"
        )
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
