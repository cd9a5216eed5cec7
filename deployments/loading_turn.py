"""Engines that share a CPU or a GPU load one after the other.

Two vLLM engines that load at once on two cores each take longer than one after the other, and both
hold their loading peak of memory at the same time. On a shared GPU, vLLM would take what the other one
allocates meanwhile for its own, and leave that much less for its KV cache. Engines with whole GPUs do
not wait.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deployments.private_folder import make_private


@asynccontextmanager
async def loading_turn(*, parallel: bool) -> AsyncIterator[None]:
    """Holds the node's lock while an engine loads. The kernel drops it when the process dies."""
    if parallel:
        yield
        return
    folder = make_private(Path(tempfile.gettempdir()) / f"sprat-loading-{os.getuid()}")
    with (folder / "lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.5)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
