"""Parts of a bench run in processes of their own, one after the other: none inherits the threads and the heap
of the one before, and whatever a part has started ends with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil

END_TIMEOUT_S = 20.0
"""A local Ray takes seconds to end."""
KILL_TIMEOUT_S = 5.0


def run_module(module: str, *options: str, timeout_s: float | None = None) -> dict[str, Any]:
    """The JSON object that `python -m module` prints; what it says on standard error passes through.

    Raises RuntimeError when it fails, subprocess.TimeoutExpired when it takes longer than `timeout_s`. It
    runs in a session of its own, so that Ctrl-C reaches it only through this process: it is told to end, has
    the time to stop what it started, and what is left then is killed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode != 0:
        raise RuntimeError(f"{module} ended with exit code {process.returncode}; its error stands above")
    result: dict[str, Any] = json.loads(output)
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    tree = [psutil.Process(process.pid)]
    tree += tree[0].children(recursive=True)
    try:
        process.send_signal(signal.SIGINT)
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with suppress(psutil.NoSuchProcess):
            tree += tree[0].children(recursive=True)
    finally:  # also when the user has no patience for this
        for each in tree:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(tree, timeout=KILL_TIMEOUT_S)
