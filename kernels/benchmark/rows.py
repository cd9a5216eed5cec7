"""Rows of a run: one per cell and system, on disk as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels.benchmark.grid import Cell

Row = dict[str, Any]

CELL_FIELDS = (
    *("path", "projection", "hidden", "rank_mix", "max_rank"),
    *("tokens", "adapters", "max_loras", "base_share"),
)


class OtherMachine(Exception):
    """The file to resume was begun elsewhere: its rows cannot stand beside new ones."""


def cell_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names the cell, of a row or of `Cell.shape`."""
    return tuple(row[field] for field in CELL_FIELDS)


class RowsFile:
    """Lines of JSON: the machine, then a row each. Without a path the rows are in memory alone."""

    def __init__(self, path: Path | None, machine: Mapping[str, Any]) -> None:
        """Read what is there, without a last line that was cut short.

        Raises:
            OtherMachine: the rows are of another device or of other versions.
        """
        self._path = path
        self._rows: dict[tuple[Any, ...], Row] = {}
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path and path.exists() else ""
        lines = [json.loads(line) for line in whole.splitlines()] or [{"machine": machine}]
        if lines[0]["machine"] != machine:
            raise OtherMachine(f"{path} was begun on {lines[0]['machine']}, this is {machine}")
        if path:
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        for row in lines[1:]:
            self._keep(row)

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def lacks(self, cell: Cell, system: str, *, here: bool) -> bool:
        """Whether a row is to be measured: there is none, or its system was absent and is `here` now."""
        row = self._rows.get((cell_of(cell.shape), system))
        return row is None or (here and "absent" in row)

    def add(self, row: Row) -> None:
        """In place of an older row of the same cell and system."""
        self._keep(row)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")

    def _keep(self, row: Row) -> None:
        self._rows[cell_of(row), row["system"]] = row
