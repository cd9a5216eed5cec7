"""The command line in this process: what it says and how it ends."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import main as command_line
from deployments.cli import up
from deployments.state_folder import StateFolder


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on standard error, which must be ours and no traceback."""
        assert "Traceback" not in self.err, self.err
        return self.err.strip().splitlines()[-1]


Sprat = Callable[..., Finished]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    """A state folder of the test's own, where nothing has run yet; no setting comes from outside."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("SPRAT_STORE_URL", raising=False)
    for name in [name for name in os.environ if name.startswith("SPRAT__")]:
        monkeypatch.delenv(name)
    chosen = StateFolder(tmp_path / "state")
    monkeypatch.setenv("SPRAT_STATE", str(chosen.path))
    return chosen


@pytest.fixture
def sprat(state: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sprat:
    """Runs the command in this process. A supervisor is never started: that is for tests/integration."""

    def refuse(*_arguments: object) -> None:
        pytest.fail("sprat up went as far as starting a supervisor")

    monkeypatch.setattr(up, "_start_supervisor", refuse)

    def run(*arguments: object, stdin: str = "") -> Finished:
        monkeypatch.setattr(sys, "argv", ["sprat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code: Any = 0
        try:
            command_line.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return Finished(code, said.out, said.err)

    return run
