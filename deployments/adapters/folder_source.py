"""`folder:PATH`, which in a cluster of several machines is a shared file system."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from cluster.adapters.content import FILES
from cluster.adapters.errors import AdapterRefused, AdapterUnavailable
from cluster.adapters.folder import check_size, missing_files
from cluster.sources import FolderSource


def copy_from_folder(source: FolderSource, into: Path) -> FolderSource:
    """Copied, because what was checked must be what is loaded. Raises AdapterUnavailable, AdapterRefused."""
    folder = source.path.expanduser().absolute()
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - names only
    except OSError as error:
        raise AdapterUnavailable(
            f"{source} cannot be read: {error.strerror}. Check the path, and that this user may read it."
        ) from error
    if problem := missing_files(names):
        raise AdapterRefused(f"{source}: {problem}")
    home = folder.resolve()
    for name in FILES:
        _copy(folder / name, home, into / name)
    return FolderSource(folder)


def _copy(path: Path, home: Path, target: Path) -> None:
    if not path.resolve().is_relative_to(home):
        raise AdapterRefused(
            f"{path} is a link that leaves its folder. Put a copy of the file there (`cp -L`), or name the "
            "repository as hf:REPO@REVISION."
        )
    try:
        # By the resolved name: a link that is changed now is not followed.
        with open(path.resolve(), "rb", opener=_without_links) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise AdapterRefused(f"{path} is no regular file. Put a copy of the file there.")
            check_size(path.name, found.st_size)
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy, 4 * 2**20)
    except PermissionError as error:
        raise AdapterUnavailable(f"{path} cannot be read: {error.strerror}. Allow this user to.") from error


def _without_links(path: str, flags: int) -> int:
    # NONBLOCK: opening a pipe would wait for a writer.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
