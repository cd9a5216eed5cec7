"""Label files in RouteLLM's format: one row per prompt, with a column per model that says whether it was
right.

CSV with a column `prompt` and columns of true/false or 1/0, one per model; other columns are ignored. Two
models are compared, so `read_labels` wants exactly two of them. The strong model is the one with the higher
mean, in the training file if there is one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class ModelLabels:
    """`right[i, m]`: whether `models[m]` answered `prompts[i]` correctly. `groups[i]` names the file the row
    came from."""

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    right: NDArray[np.bool_]
    groups: tuple[str, ...]


def read_model_labels(files: Sequence[Path], *, drop: Sequence[Path] = ()) -> ModelLabels:
    """All rows of files that name the same models, one or more, without the prompts in the files of `drop`.
    Raises ConfigError with file and line, also where there is nothing to learn."""
    found = _read_all(files, drop)
    if (found.right == found.right[0]).all():
        raise ConfigError(
            "Every model is right on all prompts or wrong on all of them: there is nothing to learn."
        )
    return found


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
    found = _read_all(files, drop, models_wanted=2)
    models = found.models
    if strong is not None and strong not in models:
        raise ConfigError(f"--strong {strong!r} is not one of the models {' and '.join(models)}.")
    if strong is None and strong_in_training in models:
        strong = strong_in_training
    sums = found.right.sum(axis=0)
    strong_at = models.index(strong) if strong is not None else int(sums[0] <= sums[1])
    weak_at = 1 - strong_at
    return Labels(
        found.prompts,
        tuple(found.right[:, weak_at].tolist()),
        tuple(found.right[:, strong_at].tolist()),
        models[weak_at],
        models[strong_at],
        found.groups,
    )


def _read_all(files: Sequence[Path], drop: Sequence[Path], models_wanted: int | None = None) -> ModelLabels:
    dropped = _dropped(drop)
    models: tuple[str, ...] = ()
    prompts: list[str] = []
    groups: list[str] = []
    right: list[tuple[bool, ...]] = []
    for file in files:
        named, rows = _read(file, models_wanted)
        models = models or named
        if set(named) != set(models):
            raise ConfigError(
                f"{file}: the models are {' and '.join(named)}, those of {files[0]} are "
                f"{' and '.join(models)}. Give files of the same models together."
            )
        order = [named.index(model) for model in models]
        for prompt, values in rows:
            if prompt not in dropped:
                prompts.append(prompt)
                groups.append(file.stem)
                right.append(tuple(values[column] for column in order))
    if len(prompts) < FEWEST:
        raise ConfigError(f"{len(prompts)} labelled prompts are too few; give at least {FEWEST}.")
    return ModelLabels(models, tuple(prompts), np.array(right, dtype=np.bool_), tuple(groups))


def _read(
    file: Path, models_wanted: int | None
) -> tuple[tuple[str, ...], list[tuple[str, tuple[bool, ...]]]]:
    """The columns of models, and per row its prompt and their values."""
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
    models = tuple(
        column
        for column in columns
        if column != PROMPT and rows and all(_value(row[column]) is not None for _, row in rows)
    )
    if len(models) != models_wanted if models_wanted else not models:
        wanted = "exactly two columns" if models_wanted else "columns"
        raise ConfigError(
            f"{file}: {wanted} of true/false or 1/0 are needed, one per model; "
            f"found {', '.join(models) or 'none'}."
        )
    read = []
    for line, row in rows:
        if not row[PROMPT]:
            raise ConfigError(f"{file}: the prompt that ends on line {line} is empty.")
        read.append((row[PROMPT], tuple(bool(_value(row[model])) for model in models)))
    return models, read


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
