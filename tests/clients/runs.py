"""Runs files of the client matrix in the environment of their clients, and reads what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
MATRIX = Path(__file__).parent / "matrix"
RUN_TIMEOUT_S = 280

RUNS = (
    ("openai3", ("test_openai.py",)),
    ("openai3", ("test_anthropic.py",)),
    ("openai3", ("test_langchain.py", "test_langchain_anthropic.py")),
    ("openai3", ("test_pydantic_ai.py",)),
    ("openai2", ("test_openai.py",)),
    ("openai2", ("test_litellm.py", "test_instructor.py")),
)
"""Environment of tests/clients/install.sh, and files of tests/clients/matrix."""

BROKEN_ENGINE_RUNS = (
    ("openai3", ("test_broken_stream.py", "test_broken_stream_anthropic.py")),
    ("openai2", ("test_broken_stream.py", "test_broken_stream_litellm.py")),
)
"""Against a cluster whose tier `small` breaks every answer after its first tokens."""

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Case:
    """One test of the matrix. `message` is its traceback, or why it was skipped."""

    client: str
    version: str
    feature: str
    outcome: Outcome
    message: str


def run_clients(environment: str, files: Sequence[str], target: Mapping[str, str]) -> list[Case]:
    """`target`: the variables that matrix/conftest.py reads. Raises AssertionError where pytest itself
    failed."""
    python = ROOT / ".venv-clients" / environment / "bin" / "python"
    assert python.exists(), "the clients are not installed: run tests/clients/install.sh"
    with tempfile.TemporaryDirectory(prefix="sprat-clients-") as folder:
        report = Path(folder) / "junit.xml"
        done = subprocess.run(
            [
                *(python, "-m", "pytest"),
                *(MATRIX / file for file in files),
                *("-c", MATRIX / "pytest.ini", "--rootdir", MATRIX, "--confcutdir", MATRIX),
                *("--junitxml", report, "-o", "junit_family=xunit1"),
            ],
            env=_environment(target),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        output = f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
        # 0: all passed, 1: some failed.
        assert done.returncode in (0, 1), output
        cases = [_case(each) for each in ET.parse(report).iter("testcase")]
    assert cases, output
    return cases


def _environment(target: Mapping[str, str]) -> dict[str, str]:
    """Of a user who has nothing but the address and the key; no client calls home."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | dict(target) | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": "1"}


def _case(element: ET.Element) -> Case:
    properties = {each.get("name"): each.get("value", "") for each in element.iter("property")}
    outcome: Outcome = "passed"
    message = ""
    for found in (*element.findall("skipped"), *element.findall("failure"), *element.findall("error")):
        outcome = "skipped" if found.tag == "skipped" else "failed"
        message = (found.get("message") or "") if outcome == "skipped" else (found.text or "")
    return Case(
        client=properties.get("client", element.get("classname", "")),
        version=properties.get("version", ""),
        feature=element.get("name", "").removeprefix("test_").replace("_", " "),
        outcome=outcome,
        message=message,
    )


def write_rows(file: Path, engines: Literal["simulated", "real"], cases: list[Case]) -> None:
    """Into the table of clients, features and engines, over what an earlier run said of the same."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    if file.exists():
        rows = {(row["client"], row["version"], row["feature"]): row for row in json.loads(file.read_text())}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    for case in cases:
        row = rows.setdefault(
            (case.client, case.version, case.feature),
            {"client": case.client, "version": case.version, "feature": case.feature},
        )
        row[engines] = case.outcome
        if case.outcome == "skipped":
            row["why_skipped"] = case.message
        row |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
