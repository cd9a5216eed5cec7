"""Label files in RouteLLM's format: one row per prompt, with a column per model that says whether it was
right.

CSV with a column `prompt` and exactly two columns of true/false or 1/0; other columns are ignored. The strong
model is the one with the higher mean, in the training file if there is one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

PROMPT = "prompt"
FEWEST = 20
"""Below that an area under a curve says nothing."""

_VALUES = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True, slots=True)
class Labels:
    """`weak[i]` and `strong[i]`: whether the model answered `prompts[i]` correctly. `groups[i]` names the
    file the row came from."""

    prompts: tuple[str, ...]
    weak: tuple[bool, ...]
    strong: tuple[bool, ...]
    weak_model: str
    strong_model: str
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def weak_accuracy(self) -> float:
        return sum(self.weak) / len(self)

    @property
    def strong_accuracy(self) -> float:
        return sum(self.strong) / len(self)

    def of(self, indices: Iterable[int]) -> Labels:
        rows = list(indices)
        return Labels(
            tuple(self.prompts[row] for row in rows),
            tuple(self.weak[row] for row in rows),
            tuple(self.strong[row] for row in rows),
            self.weak_model,
            self.strong_model,
            tuple(self.groups[row] for row in rows),
        )


def read_labels(
    files: Sequence[Path],
    *,
    strong: str | None = None,
    strong_in_training: str | None = None,
    drop: Sequence[Path] = (),
) -> Labels:
    """All rows of files that name the same two models. `strong` overrides which is the strong one;
    `strong_in_training` too, but only where these files name it. Prompts in the files of `drop` are left out.
    Raises ConfigError with file and line."""
    dropped = _dropped(drop)
    models: tuple[str, str] | None = None
    prompts: list[str] = []
    groups: list[str] = []
    right: tuple[list[bool], list[bool]] = ([], [])
    for file in files:
        named, rows = _read(file)
        if models is None:
            models = named
        elif set(named) != set(models):
            raise ConfigError(
                f"{file}: the models are {' and '.join(named)}, those of {files[0]} are "
                f"{' and '.join(models)}. Evaluate files of the same two models together."
            )
        order = (0, 1) if named == models else (1, 0)
        for prompt, values in rows:
            if prompt not in dropped:
                prompts.append(prompt)
                groups.append(file.stem)
                for model, column in enumerate(order):
                    right[model].append(values[column])
    if models is None or len(prompts) < FEWEST:
        raise ConfigError(f"{len(prompts)} labelled prompts are too few; give at least {FEWEST}.")
    if strong is not None and strong not in models:
        raise ConfigError(f"--strong {strong!r} is not one of the models {' and '.join(models)}.")
    if strong is None and strong_in_training in models:
        strong = strong_in_training
    first_is_strong = strong == models[0] if strong is not None else sum(right[0]) > sum(right[1])
    weak_at, strong_at = (1, 0) if first_is_strong else (0, 1)
    return Labels(
        tuple(prompts),
        tuple(right[weak_at]),
        tuple(right[strong_at]),
        models[weak_at],
        models[strong_at],
        tuple(groups),
    )


def _read(file: Path) -> tuple[tuple[str, str], list[tuple[str, tuple[bool, bool]]]]:
    """The two model columns, and per row its prompt and their values."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read as CSV: {error}.") from error
    if PROMPT not in columns:
        raise ConfigError(
            f"{file}: there is no column {PROMPT!r}; it has {', '.join(columns) or 'no columns'}."
        )
    models = [
        column
        for column in columns
        if column != PROMPT and rows and all(_value(row[column]) is not None for _, row in rows)
    ]
    if len(models) != 2:
        named = ", ".join(models) or "none"
        raise ConfigError(
            f"{file}: exactly two columns of true/false or 1/0 are needed, one per model; found {named}."
        )
    first, second = models
    read = []
    for line, row in rows:
        if not row[PROMPT]:
            raise ConfigError(f"{file}: the prompt that ends on line {line} is empty.")
        read.append((row[PROMPT], (bool(_value(row[first])), bool(_value(row[second])))))
    return (first, second), read


def _value(text: str | None) -> bool | None:
    return _VALUES.get((text or "").strip().lower())


def _dropped(files: Sequence[Path]) -> frozenset[str]:
    """Contamination lists: JSON lines, each a prompt or an object with one under `prompt` or
    `eval_prompt`."""
    found: set[str] = set()
    for file in files:
        try:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                if line.strip():
                    entry = json.loads(line)
                    prompt = entry if isinstance(entry, str) else _prompt_of(entry)
                    if prompt is None:
                        raise ConfigError(f"{file}: line {number} holds no prompt.")
                    found.add(prompt)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read as JSON lines: {error}.") from error
    return frozenset(found)


def _prompt_of(entry: object) -> str | None:
    if isinstance(entry, dict):
        for name in (PROMPT, "eval_prompt"):
            if isinstance(entry.get(name), str):
                return str(entry[name])
    return None
