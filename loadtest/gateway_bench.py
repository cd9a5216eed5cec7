"""`bench gateway`: several systems, the same requests, short alternating slices.

Systems take turns (A B A B …) within every cell, so that noise of the machine meets all of them alike.
Only HTTP; nothing of sprat is imported, and sprat is one system among others.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from loadtest.closed_loop import Callers
from loadtest.many_streams import many_streams
from loadtest.percentiles import METHOD
from loadtest.request_body import request_bytes
from loadtest.rows import Row, row, with_added
from loadtest.streaming_client import StreamingClient
from loadtest.systems import Mode, Skip, System
from loadtest.turns import pause, resume, turn_of

NOTE = (
    "Closed loop; client and servers share this machine's cores. Times are of successful calls: p50_ms and "
    "p99_ms from the write of the request to the last token (whole answers: to the end of the body), TTFT to "
    "the first non-empty content; connecting is not included. The client's own cost is in every row, direct "
    "included: compare differences and ratios."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds_s` is measured time per system and cell, in slices of about `slice_s`."""

    systems: tuple[System, ...]
    modes: tuple[Mode, ...] = tuple(Mode)
    concurrencies: tuple[int, ...] = (1, 16)
    seconds_s: float = 4.0
    slice_s: float = 0.5
    warm_up_s: float = 0.5
    timeout_s: float = 30.0
    max_tokens: int = 32
    skips: tuple[Skip, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    cores: int = 0
    """Of the machine; 0: as many as this process may use."""

    pinning: str = ""
    idle_cpu_percent: tuple[tuple[str, float], ...] = ()
    streams: int = 0
    """So many paced streams at a time, after the cells; 0: not measured."""

    streams_systems: tuple[str, ...] = ()
    """For which systems; empty: for all."""

    note: str = ""

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError(f"systems {names}: each name once")
        if not self.systems or not self.modes or not self.concurrencies:
            raise ValueError("at least one system, one mode and one concurrency are needed")
        if min(self.concurrencies) < 1:
            raise ValueError(f"concurrency {min(self.concurrencies)}: use at least 1")
        if not (self.seconds_s > 0 and self.slice_s > 0 and self.warm_up_s > 0 and self.timeout_s > 0):
            raise ValueError("seconds, slice, warm-up and timeout must be above 0")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def run(plan: Plan, tell: Callable[[str], None] = log) -> dict[str, Any]:
    """The whole report, as `--json` prints it."""
    # What lives now lives to the end: collections between the slices need not look at it.
    gc.collect()
    gc.freeze()
    pause(*plan.systems)
    try:
        return await _run(plan, tell)
    finally:
        gc.unfreeze()
        resume(*plan.systems)


async def _run(plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    skips = list(plan.skips)
    skipped_names = {skip.system for skip in skips}
    rows: list[Row] = []
    for mode in plan.modes:
        ready: list[System] = []
        for system in plan.systems:
            if system.name in skipped_names:
                continue
            reason = await _reason_against(system, mode, plan)
            if reason is None:
                ready.append(system)
            else:
                skips.append(Skip(system.name, reason, mode))
                tell(f"{mode}: {system.name} skipped: {reason}")
        for concurrency in plan.concurrencies:
            rows += await _cell(ready, mode, concurrency, plan)
            tell(f"{mode} c={concurrency}: done")
    streams = await _streams(plan, {skip.system for skip in skips}, tell)
    return {
        "cores": plan.cores or len(os.sched_getaffinity(0)),
        "pinning": plan.pinning or None,
        "idle_cpu_percent": dict(plan.idle_cpu_percent),
        "rows": with_added(rows),
        **streams,
        "skipped": [skip.to_json() for skip in skips],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions() | dict(plan.versions),
        "percentile_method": METHOD,
        "seconds_per_cell": plan.seconds_s,
        "note": f"{NOTE} {plan.note}".strip(),
    }


async def _reason_against(system: System, mode: Mode, plan: Plan) -> str | None:
    """One call before anything is measured: a system that cannot answer is skipped and says why."""
    reason = system.reason_against(mode)
    if reason is not None:
        return reason
    client = StreamingClient(system.endpoint(mode), plan.timeout_s)
    try:
        async with turn_of(system):
            call = await client.call(request_bytes(system, mode, plan.max_tokens))
    finally:
        client.close()
    return None if call.error is None else f"first {mode} call: {call.error.kind}: {call.error.message}"


async def _streams(plan: Plan, skipped: set[str], tell: Callable[[str], None]) -> dict[str, Any]:
    if not plan.streams:
        return {}
    systems = tuple(
        system
        for system in plan.systems
        if system.name not in skipped and (not plan.streams_systems or system.name in plan.streams_systems)
    )
    measured = await many_streams(systems, plan.streams, plan.timeout_s)
    tell(f"{plan.streams} streams: done")
    return {f"streams_{plan.streams}": measured}


async def _cell(systems: Sequence[System], mode: Mode, concurrency: int, plan: Plan) -> list[Row]:
    callers = {
        system.name: Callers(
            system,
            system.endpoint(mode),
            request_bytes(system, mode, plan.max_tokens),
            concurrency,
            plan.timeout_s,
        )
        for system in systems
    }
    try:
        typical_s: dict[str, float] = {}
        for name, each in callers.items():
            async with turn_of(each.system):
                await each.slice(plan.warm_up_s)
            typical_s[name] = each.tally.median_e2e_s()
            each.forget()
        longest_s = max(typical_s.values(), default=0.0)
        # Long calls need long slices; at least two, or the systems would not alternate.
        slices = max(2, round(plan.seconds_s / max(plan.slice_s, 2 * longest_s)))
        slice_s = plan.seconds_s / slices
        for _ in range(slices):
            for name, each in callers.items():
                # A collection in the middle of a slice would be blamed on whoever has his turn.
                gc.collect()
                gc.disable()
                try:
                    async with turn_of(each.system):
                        await each.slice(slice_s, spread_s=min(typical_s[name], slice_s))
                finally:
                    gc.enable()
        return [row(name, mode, each.tally) for name, each in callers.items()]
    finally:
        for each in callers.values():
            each.close()


def _versions() -> dict[str, str]:
    packages = ("httptools", "orjson", "uvloop")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
