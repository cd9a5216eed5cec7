"""The report for people."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    ("mode", "mode"),
    ("c", "concurrency"),
    ("system", "system"),
    ("req/s", "requests_per_s"),
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("TTFT p50", "ttft_p50_ms"),
    ("added p50", "added_p50_ms"),
    ("added TTFT p50", "added_ttft_p50_ms"),
    ("added TTFT p99", "added_ttft_p99_ms"),
    ("CPU us/req", "cpu_us_per_request"),
    ("us/chunk", "cpu_us_per_chunk"),
    ("store us", "store_cpu_us_per_request"),
    ("client us", "client_cpu_us_per_request"),
    ("RSS MiB", "rss_mib"),
    ("n", "n"),
    ("errors", "errors"),
)


def table(report: dict[str, Any]) -> str:
    cells = [[title for title, _ in COLUMNS]]
    cells += [[_text(row[field]) for _, field in COLUMNS] for row in report["rows"]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    lines += [
        line for field, value in report.items() if field.startswith("streams_") for line in _streams(value)
    ]
    lines += [
        f"skipped {skip['system']} {skip.get('mode', '')}: {skip['reason']}" for skip in report["skipped"]
    ]
    lines.append(f"{report['cores']} cores, pinning: {report['pinning']}, {report['date']}. {report['note']}")
    return "\n".join(lines)


def _streams(measured: dict[str, Any]) -> list[str]:
    return [
        f"{measured['streams']} streams, {row['system']}: worst stream's ITL p99 "
        f"{_text(row['worst_stream_itl_p99_ms'])} ms ({_text(row['worst_vs_direct'])}x direct), "
        f"CPU {_text(row['cpu_us_per_chunk'])} us per chunk, RSS {_text(row['rss_mib'])} MiB, "
        f"errors {row['errors']}"
        for row in measured["rows"]
    ]


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
