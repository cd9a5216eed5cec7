"""What the systems cost while they wait for their turn: it falls on whoever is measured then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psutil

from deployments.bench.gateway_systems.system import RunningSystem

SETTLE_S = 1.0
MEASURED_S = 3.0


async def idle_cpu_percent(systems: Sequence[RunningSystem]) -> dict[str, float]:
    """Of one core, for each system with all its processes, in the path or not."""
    await asyncio.sleep(SETTLE_S)
    began_s, before = time.monotonic(), [_cpu_s(system) for system in systems]
    await asyncio.sleep(MEASURED_S)
    took_s = time.monotonic() - began_s
    return {
        system.name: round((_cpu_s(system) - earlier_s) / took_s * 100, 1)
        for system, earlier_s in zip(systems, before, strict=True)
    }


def _cpu_s(system: RunningSystem) -> float:
    return sum(map(_cpu_of, system.all_pids))


def _cpu_of(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
