"""Processor time and memory of other processes."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path

PAGE_BYTES = resource.getpagesize()


def cpu_s(pids: Sequence[int]) -> float | None:
    """User plus system time of these processes together, all their threads, not their children, to the
    nanosecond (`/proc` would count ticks of 10 ms). None when there are no pids or one is gone: part of a sum
    is no sum."""
    if not pids:
        return None
    try:
        return sum(time.clock_gettime(_clock_of(pid)) for pid in pids)
    except OSError:
        return None


def rss_bytes(pids: Sequence[int]) -> int | None:
    """Resident memory of these processes together; pages that they share count for each of them."""
    if not pids:
        return None
    try:
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
            for pid in pids
        )
    except OSError:
        return None


def _clock_of(pid: int) -> int:
    """What clock_getcpuclockid(3) returns on Linux; Python offers it for threads only."""
    return ~pid << 3 | 2
