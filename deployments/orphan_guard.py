"""A vLLM plugin without kernels: an engine process ends when the replica that owns it ends.

vLLM's workers watch their engine core, but the core does not watch its parent: after a SIGKILL of the
replica it would keep its memory for ever. Loaded in every engine process through the entry point
`vllm.general_plugins`.
"""

from __future__ import annotations

import os
import select
import signal
import threading

OWNER_VARIABLE = "SPRAT_ENGINE_OWNER_PID"


def install() -> None:
    """Watch the owner named in the environment; without one (vLLM used by hand) do nothing."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None or int(owner) == os.getpid():
        return
    try:
        owner_fd = os.pidfd_open(int(owner))
    except ProcessLookupError:
        _end()
    threading.Thread(target=_wait, args=(owner_fd,), name="sprat-orphan-guard", daemon=True).start()


def _wait(owner_fd: int) -> None:
    poller = select.poll()
    poller.register(owner_fd, select.POLLIN)
    poller.poll()
    _end()


def _end() -> None:
    # SIGKILL: the engine core blocks in native code and may not reach a Python signal handler.
    os.kill(os.getpid(), signal.SIGKILL)
