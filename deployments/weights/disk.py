"""Disk space: asked for before writing, and named plainly when it runs out all the same."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployments.weights.errors import WeightsError

FreeBytes = Callable[[Path], int]

SLACK_BYTES = 256 * 1024**2
"""Left over after every write, for logs and whatever else shares the disk."""

CONVERTED_PER_GGUF_BYTE = 4
"""Bytes of bfloat16 per byte of a 4-bit GGUF, rounded up (measured: 2.7 to 3.2)."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_MORE_SPACE = "Free some space there, or set SPRAT_CACHE to a folder on a larger disk, and run again."


def free_bytes(folder: Path) -> int:
    """Bytes this user may still write on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def require_free(folder: Path, needed_bytes: int, purpose: str, free: FreeBytes = free_bytes) -> None:
    """Raises WeightsError unless `needed_bytes` and some slack fit on the disk of `folder`."""
    wanted_bytes, available_bytes = needed_bytes + SLACK_BYTES, free(folder)
    if available_bytes < wanted_bytes:
        raise WeightsError(
            f"{purpose} needs {in_gb(wanted_bytes)} of disk in {folder}, {in_gb(available_bytes)} are free",
            fix=_MORE_SPACE,
        )


@contextmanager
def disk_errors_named(folder: Path, purpose: str) -> Iterator[None]:
    """Turns a full disk, a quota or a folder we may not write to into a WeightsError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder, purpose) from error
        if error.errno in _READ_ONLY:
            raise WeightsError(
                f"{purpose}: cannot write: {error}",
                fix="Set SPRAT_CACHE to a folder that this user may write to, and run again.",
            ) from error
        raise


def disk_full(folder: Path, purpose: str) -> WeightsError:
    """The error for a disk that filled up while writing."""
    return WeightsError(f"{purpose}: the disk of {folder} is full", fix=_MORE_SPACE)


def in_gb(size_bytes: int) -> str:
    """`1.12 GB`, decimal."""
    return f"{size_bytes / 1e9:.2f} GB"


def tree_bytes(folder: Path) -> int:
    """Bytes in all files below `folder`; files that vanish meanwhile count as nothing."""
    total_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total_bytes += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118 - called often
    return total_bytes
