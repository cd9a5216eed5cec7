"""Whose turn it is: a system that burns processor time while it waits is stopped meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from loadtest.systems import System

WAKE_UP_S = 0.3
"""What fell due while it was stopped is done before it is asked."""


@asynccontextmanager
async def turn_of(system: System) -> AsyncIterator[None]:
    if not system.pause_pids:
        yield
        return
    resume(system)
    await asyncio.sleep(WAKE_UP_S)
    try:
        yield
    finally:
        pause(system)


def pause(*systems: System) -> None:
    _send(signal.SIGSTOP, systems)


def resume(*systems: System) -> None:
    _send(signal.SIGCONT, systems)


def _send(what: signal.Signals, systems: Iterable[System]) -> None:
    for system in systems:
        for pid in system.pause_pids:
            with suppress(ProcessLookupError):
                os.kill(pid, what)
