"""SHA-256 of what is written, computed while it is written."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

CHUNK_BYTES = 4 * 1024**2


def sha256_of(path: Path) -> str:
    """The lower-case hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(
    source: IO[bytes], target: IO[bytes], digest: "hashlib._Hash", on_bytes: Callable[[int], None]
) -> None:
    """Copies to the end of `source`; `on_bytes` hears the size of each chunk."""
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        on_bytes(len(chunk))
