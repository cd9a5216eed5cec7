"""Which files make an adapter, and the hash that its version is bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""What vLLM reads, and all that we fetch, keep and hash. A README, a tokenizer or a pickle beside them stays
where it is, and a name from outside never becomes a path."""

MAX_CONFIG_BYTES = 2**20
MAX_WEIGHTS_BYTES = 16 * 2**30
"""Rank 512 on all linear layers of a 70B base has 13.3 GB in 16 bit."""

LIMITS_BYTES = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}

_CHUNK_BYTES = 4 * 2**20


def file_hash(path: Path) -> str:
    """SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 in hex over `name NUL sha256 LF` of each file, by name. `hashes`: name → SHA-256 in hex."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name}\0{hashes[name]}\n".encode())
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """Of a folder that holds the files. Raises OSError."""
    return content_hash({name: file_hash(folder / name) for name in FILES})
