"""Every test of the matrix as a subtest of ours, and as a row of the table where one is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from tests.clients.runs import Case, write_rows


def report(cases: list[Case], engines: Literal["simulated", "real"], subtests: pytest.Subtests) -> None:
    """`SPRAT_CLIENT_TABLE=FILE` (make prove-clients) writes the rows."""
    table = os.environ.get("SPRAT_CLIENT_TABLE")
    if table:
        write_rows(Path(table), engines, cases)
    for case in cases:
        with subtests.test(f"{case.client} {case.version}: {case.feature}"):
            if case.outcome == "failed":
                pytest.fail(case.message, pytrace=False)
            if case.outcome == "skipped":
                pytest.skip(case.message)
