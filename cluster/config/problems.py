"""What is wrong with a cluster YAML: path, line, message, fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the file. `line` counts from 1, 0 = not in the file."""

    path: str
    message: str
    fix: str
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}. Fix: {self.fix}."


def unknown(path: str, value: str, known: Iterable[str]) -> Problem:
    """A name that is none of the `known` ones."""
    names = sorted(known)
    close = difflib.get_close_matches(value, names, n=1)
    fix = f"did you mean {close[0]!r}" if close else f"use one of {', '.join(names) or '(none defined)'}"
    return Problem(path, f"{value!r} is not defined", fix)


class ConfigProblems(ConfigError):
    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source} has {len(problems)} problem(s):\n{lines}")
