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
    ("TTFT p99", "ttft_p99_ms"),
    ("added p50", "added_p50_ms"),
    ("added TTFT p50", "added_ttft_p50_ms"),
    ("CPU us/req", "cpu_us_per_request"),
    ("n", "n"),
    ("errors", "errors"),
)


def table(report: dict[str, Any]) -> str:
    cells = [[title for title, _ in COLUMNS]]
    cells += [[_text(row[field]) for _, field in COLUMNS] for row in report["rows"]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    lines += [
        f"skipped {skip['system']} {skip.get('mode', '')}: {skip['reason']}" for skip in report["skipped"]
    ]
    lines.append(f"{report['cores']} cores, {report['date']}. {report['note']}")
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
