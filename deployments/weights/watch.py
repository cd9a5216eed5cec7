"""How much a program that reports nothing has downloaded so far."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.weights.disk import tree_bytes


@contextmanager
def watched(folder: Path, on_bytes: Callable[[int], None], interval_s: float = 0.5) -> Iterator[None]:
    """During the block, `on_bytes` hears the size of `folder` from another thread."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(interval_s):
            on_bytes(tree_bytes(folder))

    thread = threading.Thread(target=watch, name=f"watch {folder.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
