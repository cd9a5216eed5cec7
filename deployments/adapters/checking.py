"""Fetch an adapter to look at it: before it is registered, and when an operator asks how it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.adapters.base_shapes import BaseShapes
from cluster.adapters.errors import AdapterProblem
from cluster.adapters.folder import CheckedAdapter, check_folder, check_unchanged
from cluster.adapters.sources import AdapterSource, parse_adapter_source
from cluster.adapters.version import AdapterVersion
from cluster.config import ClusterConfig
from cluster.errors import StartError
from deployments.adapters.fetch import fetch_files
from deployments.weights.store import WeightsStore, default_root


@dataclass(frozen=True, slots=True)
class SourceState:
    """`state`: `ok`, or the code of an AdapterProblem; `detail`: its sentence."""

    state: str
    detail: str = ""


def check_source(
    source_text: str, base_model: str, config: ClusterConfig
) -> tuple[CheckedAdapter, AdapterSource]:
    """With the source as it should be registered. Blocks. Raises AdapterProblem, StartError."""
    source = parse_adapter_source(source_text)
    known = config.base_models.get(base_model)
    base = base_at_hand(base_model, config)
    with _own_folder() as folder:
        pinned = fetch_files(source, folder)
        checked = check_folder(folder, base_model, base, "" if known is None else known.source)
    return checked, pinned


def source_state(version: AdapterVersion, config: ClusterConfig) -> SourceState:
    """Whether a node could fetch the version now. Blocks: the files are fetched and checked.
    Raises StartError of our own disk."""
    try:
        with _own_folder() as folder:
            fetch_files(parse_adapter_source(version.source), folder)
            check_unchanged(folder, version.content_hash)
            check_folder(folder, version.base_model, base_at_hand(version.base_model, config))
    except AdapterProblem as problem:
        return SourceState(problem.code or "", problem.message)
    return SourceState("ok")


def base_at_hand(base_model: str, config: ClusterConfig) -> BaseShapes | None:
    """None where the base model is not of this configuration, or its weights are not on this machine."""
    known = config.base_models.get(base_model)
    if known is None:
        return None
    store = WeightsStore(default_root())
    if not store.is_ready(base_model, known.source, known.sha256):
        return None
    return BaseShapes.of_folder(store.path_of(base_model, known.source, known.sha256))


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Beside the cache: the system's temporary folder is often small, and sometimes memory."""
    root = default_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=root) as folder:
            yield Path(folder)
    except OSError as error:
        raise StartError(
            f"{root} cannot be used: {error}. Free some space there, or set SPRAT_CACHE to another folder."
        ) from error
