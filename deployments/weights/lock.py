"""One process at a time per model; the others wait and then find the work done."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def model_lock(path: Path, *, on_wait: Callable[[str], None], poll_s: float = 0.5) -> Iterator[None]:
    """Holds the lock file at `path`; `on_wait` hears once who holds it, as text, if that is another.

    The kernel frees it when the holder ends, however it ends, so there is no stale lock to clean.
    It also excludes threads of one process: each opens the file anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:  # never deleted: a waiter may have it open
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    on_wait(f"process {file.read().strip() or '?'}")
                    told = True
                time.sleep(poll_s)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
