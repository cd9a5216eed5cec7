"""Why an engine process died, from what vLLM printed.

vLLM's front process only learns that a worker died ("See root cause above"); the exception stands in the
worker's own log lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PASSED_ON = ("Engine core initialization failed", "WorkerProc initialization failed")

_LOGGED = re.compile(
    r"^\([^)]*\) ERROR [^\[]*\[[^\]]*\] (?P<error>(?:\w+\.)*\w*(?:Error|Exception)\b(?:: .*)?)$"
)


def root_cause(lines: Iterable[str]) -> str | None:
    """The first exception that a process of vLLM logged as its own; None if there is none."""
    for line in lines:
        match = _LOGGED.match(line.rstrip())
        if match is not None and not any(each in match["error"] for each in PASSED_ON):
            return match["error"]
    return None


def root_cause_in(logs: Path) -> str | None:
    """Of the output that Ray kept of its workers, below the folder `logs`."""
    for file in sorted(logs.rglob("worker-*.out"), key=lambda each: each.stat().st_mtime):
        with file.open(encoding="utf-8", errors="replace") as lines:
            found = root_cause(lines)
        if found is not None:
            return found
    return None
