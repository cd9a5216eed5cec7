"""`@fault(what breaks, what is promised)` on a test; `--fault-matrix FILE` writes what was kept as JSON.

`make prove-faults` and `make prove-endurance` commit such a file; the outage table in
cluster/scheduler/README.md names the tests of the first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def fault(what: str, promise: str) -> pytest.MarkDecorator:
    return pytest.mark.fault(what=what, promise=promise)


@pytest.fixture
def recovered(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Tell how many seconds it took from the end of the fault until everything was as before."""
    return lambda seconds: record_property("recovery_s", round(seconds, 2))


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Figures for the row of this test: `measured(calls=120, rss_growth_mb=1.5)`."""
    return lambda **figures: record_property("figures", figures)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-matrix", type=Path, help="write the rows of all tests with @fault to this file")


def configure_fault_matrix(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what, promise): a row of the fault matrix")
    if config.getoption("--fault-matrix"):
        config.pluginmanager.register(_Matrix(config), "fault-matrix")


class _Matrix:
    def __init__(self, config: pytest.Config) -> None:
        self._file: Path = config.getoption("--fault-matrix")
        self._marks: dict[str, dict[str, str]] = {}
        self._rows: list[dict[str, Any]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("fault")
            if mark is not None:
                self._marks[item.nodeid] = mark.kwargs

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        mark = self._marks.get(report.nodeid)
        if mark is None or (report.when != "call" and report.passed):
            return
        properties = dict(report.user_properties)
        self._rows.append(
            {
                "fault": mark["what"],
                "promise": mark["promise"],
                "kept": report.outcome == "passed",
                "recovery_s": properties.get("recovery_s"),
                "command": f"python -m pytest '{report.nodeid}'",
                "seconds": round(report.duration, 2),
            }
            | ({"figures": properties["figures"]} if "figures" in properties else {})
        )

    def pytest_sessionfinish(self) -> None:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        rows = [row | {"date": date, "commit": commit} for row in self._rows]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(rows, indent=1) + "\n")
