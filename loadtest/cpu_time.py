"""Processor time of a server's processes, from /proc. The kernel counts it in ticks of 10 ms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float | None:
    """User plus system time of these processes together, all their threads, not their children. None when
    there are no pids or one is gone: part of a sum is no sum."""
    if not pids:
        return None
    try:
        return sum(_ticks(pid) for pid in pids) / TICKS_PER_S
    except OSError:
        return None


def _ticks(pid: int) -> int:
    # The command name stands in brackets and may hold spaces and brackets itself.
    fields = (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    return int(fields[11]) + int(fields[12])
