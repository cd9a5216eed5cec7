"""Folders in the system's temporary folder that nobody else may have prepared for us."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cluster.errors import StartError


def make_private(path: Path) -> Path:
    """A folder of ours with mode 700; a link or somebody else's folder is refused with StartError."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StartError(
            f"{path} belongs to another user or is a link. Remove it, or set TMPDIR to a folder of yours."
        )
    path.chmod(0o700)
    return path
