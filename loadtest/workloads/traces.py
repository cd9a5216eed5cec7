"""Public traces: where they lie, and how their files are read. None is in this repository."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from loadtest.bad_input import BadInput
from loadtest.workloads.grammar import Trace
from loadtest.workloads.planned_call import TraceRow

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True)
class KnownTrace:
    """`paths` are tried in each folder: the layout of a folder of datasets, then the published name."""

    paths: tuple[str, ...]
    download: str


KNOWN = {
    "azure-code": KnownTrace(
        ("azure_llm_2023/code.csv", "AzureLLMInferenceTrace_code.csv"),
        "https://github.com/Azure/AzurePublicDataset, file data/AzureLLMInferenceTrace_code.csv (CC-BY)",
    ),
    "mooncake": KnownTrace(
        ("mooncake/synthetic_trace.jsonl", "synthetic_trace.jsonl"),
        "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces/synthetic_trace.jsonl (Apache-2.0)",
    ),
}


def default_folders() -> list[Path]:
    """Searched after the folder of the command line."""
    named = os.environ.get("SPRAT_TRACES")
    return [
        *([Path(named)] if named else []),
        Path.home() / ".cache" / "sprat" / "traces",
        Path("..") / "shared" / "data",
    ]


def find_trace(trace: Trace, folders: Sequence[Path]) -> Path:
    known = KNOWN.get(trace.source)
    if known is None:
        file = Path(trace.source.removeprefix("trace:"))
        if not file.is_file():
            raise BadInput(f"--workload {trace}: there is no file {file}")
        return file
    for folder in folders:
        for path in known.paths:
            if (folder / path).is_file():
                return folder / path
    searched = ", ".join(str(folder) for folder in folders)
    raise BadInput(
        f"--workload {trace} needs the file {known.paths[-1]}, which is in none of {searched}. "
        f"Download it from {known.download} and name its folder with --traces or SPRAT_TRACES."
    )


def read_trace(file: Path) -> list[TraceRow]:
    """Azure CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or Mooncake JSON lines (`timestamp` in ms,
    `input_length, output_length, hash_ids`), by the first character. Sorted; the first request is at 0 s."""
    with file.open(encoding="utf-8", newline="") as lines:
        first = lines.readline()
        whole = chain((first,), lines)
        read = _mooncake if first.lstrip().startswith("{") else _azure
        try:
            rows = sorted(read(whole), key=lambda row: row.at_s)
        except (KeyError, ValueError, TypeError) as error:
            raise BadInput(
                f"{file} is no trace that is known here: {error!r}. It has to be a CSV with the columns "
                f"{','.join(AZURE_COLUMNS)} or JSON lines with {', '.join(MOONCAKE_FIELDS)}."
            ) from error
    if not rows:
        raise BadInput(f"{file} has no request")
    began_s = rows[0].at_s
    return [replace(row, at_s=row.at_s - began_s) for row in rows]


def _azure(lines: Iterable[str]) -> Iterator[TraceRow]:
    for row in csv.DictReader(lines):
        # Azure writes seven digits of a second; datetime reads up to six.
        at = datetime.fromisoformat(row["TIMESTAMP"][:26])
        yield TraceRow(at.timestamp(), _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"]))


def _mooncake(lines: Iterable[str]) -> Iterator[TraceRow]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            yield TraceRow(
                float(row["timestamp"]) / 1000,
                _tokens(row["input_length"]),
                _tokens(row["output_length"]),
                tuple(int(block) for block in row.get("hash_ids", ())),
            )


def _tokens(value: object) -> int:
    """At least one: an OpenAI-compatible server takes neither an empty prompt nor `max_tokens` 0."""
    return max(1, int(str(value)))
