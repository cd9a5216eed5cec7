"""Arrays and a few words about them in one `.npz` file: what a trained model is kept in.

Nothing in it is a pickle, so reading a stranger's file runs nothing. A file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError

HEADER = "header"


class ArrayFile(NamedTuple):
    """`header` is JSON."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def write_array_file(path: Path, content: ArrayFile, *, kind: str, version: int) -> None:
    """`kind` and `version` say what the arrays are and in which layout. Raises ConfigError."""
    header = {"kind": kind, "version": version, **content.header}
    data = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    arrays: Mapping[str, Any] = {HEADER: data, **content.arrays}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_array_file(path: Path, *, kind: str, version: int, made_by: str) -> ArrayFile:
    """Raises ConfigError where the file is not of this kind and version; `made_by` is the command that makes
    one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
        found = header.pop("kind"), header.pop("version")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: this is no file of `{made_by}`, or it is damaged.") from error
    if found != (kind, version):
        raise ConfigError(
            f"{path}: holds {found[0]!r} version {found[1]!r}, not {kind!r} version {version}; "
            f"make it again with `{made_by}`."
        )
    return ArrayFile(header, arrays)
