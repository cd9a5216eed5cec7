"""The laptop profile with its real models, started by the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.free_port import free_port

START_TIMEOUT_S = 1500
LAPTOP = Path(__file__).parents[2] / "deployments" / "examples" / "laptop.yaml"


@dataclass
class Laptop:
    state: Path
    environment: dict[str, str]
    started: dict[str, Any]

    def sprat(self, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli.main", "--state", str(self.state), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        return json.loads(self.sprat("status", "--json").stdout)

    def pool(self, name: str) -> dict[str, Any]:
        return next(pool for pool in self.status()["pools"] if pool["name"] == name)


@contextmanager
def started(config: Path, *arguments: str) -> Iterator[Laptop]:
    """`sprat up` in a state folder of its own, on a free port."""
    folder = Path(tempfile.mkdtemp(prefix="sprat-e2e-", dir="/tmp"))
    # Its own Ray, not the one whose token the other tests use.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["SPRAT__GATEWAY__PORT"] = str(free_port())
    running = Laptop(folder, environment, {})
    up = running.sprat(
        "up", str(config), *arguments, "--json", "--timeout-s", "900", timeout_s=START_TIMEOUT_S
    )
    try:
        assert up.returncode == 0, f"{up.stderr}\n{_tail(folder)}"
        running.started = json.loads(up.stdout)
        yield running
    finally:
        running.sprat("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def laptop() -> Iterator[Laptop]:
    with started(LAPTOP) as running:
        yield running


def _tail(folder: Path) -> str:
    log = folder / "logs" / "supervisor.log"
    return log.read_text()[-3000:] if log.exists() else "no supervisor log"
