"""What `make prove-models` saw: one row per model that was started, in `results/models.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cluster.config.base import Strict
from cluster.errors import ConfigError

RESULTS = Path(__file__).parent / "results" / "models.json"


class Check(Strict):
    """One thing that was tried on a running replica. `detail` is what came back, or why it was left out."""

    ok: bool | None
    """None: not tried."""
    detail: str = ""


class Proof(Strict):
    """A model served by one replica on CPU: with its own weights (`real`), or with random ones at the
    smallest size of its architecture (`tiny`)."""

    family: str
    model: str
    """Of a real run. A tiny run stands for all models of its family and architecture."""
    architecture: str
    kind: Literal["tiny", "real"]
    reason: str = ""
    """Why it does not run; empty if it does."""
    start_s: float | None = None
    """From `sprat up` to the first ready replica."""
    chat: Check = Check(ok=None)
    stream: Check = Check(ok=None)
    adapter: Check = Check(ok=None)
    kernels: str = ""
    """What computed the adapter: `sprat`, `stock`."""
    date: str
    commit: str
    versions: dict[str, str]

    @property
    def runs(self) -> bool:
        return not self.reason

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.family, self.architecture, self.kind, self.model if self.kind == "real" else "")


class ProofsFile:
    """The rows on disk; each `keep` writes the file anew, whole or not at all."""

    def __init__(self, path: Path = RESULTS) -> None:
        self._path = path
        self.rows = list(read_proofs(path))

    def keep(self, proof: Proof) -> None:
        """In the place of an earlier row of the same run."""
        self.rows = sorted(
            [row for row in self.rows if row.key != proof.key] + [proof], key=lambda row: row.key
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(_as_json(self.rows), encoding="utf-8")
        partial.replace(self._path)


def read_proofs(path: Path = RESULTS) -> tuple[Proof, ...]:
    """Empty where nothing was proved yet. Raises ConfigError."""
    if not path.exists():
        return ()
    try:
        return tuple(
            Proof.model_validate(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        )
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{path} is not a result of `make prove-models`; run that again: {error}"
        ) from error


def _as_json(rows: Iterable[Proof]) -> str:
    return json.dumps({"rows": [row.model_dump() for row in rows]}, indent=1) + "\n"
