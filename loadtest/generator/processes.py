"""Worker processes on this machine: forked, and gone when the run is."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import gevent

EXIT_S = 5.0


@contextmanager
def forked(count: int, work: Callable[[], None]) -> Iterator[None]:
    """`work` runs in each of them. At the end they have been told to go; who has not gone in time, or was
    not told because of an error here, is killed."""
    children = [_fork(work) for _ in range(count)]
    patience_s = 0.0
    try:
        yield
        patience_s = EXIT_S
    finally:
        deadline_s = time.monotonic() + patience_s
        for child in children:
            _wait_for(child, deadline_s)


def _fork(work: Callable[[], None]) -> int:
    child = int(gevent.fork())
    if child:
        return child
    # Ctrl-C reaches the whole process group; only the master acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gevent.spawn(_end_with, os.getppid())
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        gevent.sleep(1)
    os._exit(1)


def _wait_for(child: int, deadline_s: float) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline_s:
                os.kill(child, signal.SIGKILL)
            gevent.sleep(0.02)
