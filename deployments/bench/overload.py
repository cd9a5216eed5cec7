"""Replays one trace against one queue, in real time and in an open loop.

A request is sent when the trace says so, however slow the system is, and judged from that moment on.
After the last arrival the run goes on until every request has been decided: served, refused, or so far past
its deadline that it would have ended if it had begun in time. The last are cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import psutil

from deployments.bench.arrivals import Arrival

SLACK_S = 0.5
"""For answers on their way when the run ends."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a queue says about a request: when the work began in its slot and when it ended.

    Both by `time.monotonic()`, which on Linux is one clock for all processes of a machine and never stepped.
    """

    started_s: float | None = None
    finished_s: float | None = None
    refused: bool = False
    reason: str = ""


class QueueUnderTest(Protocol):
    """Slots behind a queue. The work of a request is `asyncio.sleep(arrival.service_s)` in a slot."""

    async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
        """Wait for a slot, do the work, say when. Returns early when refused; cancelled at the end.
        `start_by_s` is the deadline by `time.monotonic()`, for systems that know of deadlines."""
        ...

    async def details(self) -> dict[str, Any]:
        """What else the report shall say of this system, asked once after the run. May be empty."""
        ...


class Ending(StrEnum):
    SERVED = "served"
    REFUSED = "refused"
    ABANDONED = "abandoned"
    """Not done when the run ended: it began after its deadline if at all."""
    FAILED = "failed"
    """The system raised an error."""


@dataclass(frozen=True, slots=True)
class Result:
    """One request. Times in seconds from the start of the trace. `left_s` is when it stopped waiting: when
    its work began, or when it was refused, failed or abandoned."""

    arrival: Arrival
    ending: Ending
    sent_s: float
    left_s: float
    started_s: float | None = None
    finished_s: float | None = None
    reason: str = ""

    @property
    def in_time(self) -> bool:
        return self.started_s is not None and self.started_s <= self.arrival.at_s + self.arrival.deadline_s


@dataclass(frozen=True, slots=True)
class Replay:
    """`cores` is what this process and all it started used while requests arrived."""

    results: tuple[Result, ...]
    cores: float


async def replay(trace: Sequence[Arrival], system: QueueUnderTest) -> Replay:
    """Results come in the order of the trace."""
    start_s = time.monotonic()
    used_s = _cpu_s()
    tasks = []
    for arrival in trace:
        await asyncio.sleep(start_s + arrival.at_s - time.monotonic())
        tasks.append(asyncio.create_task(_send(arrival, system, start_s)))
    cores = (_cpu_s() - used_s) / (time.monotonic() - start_s)
    latest_start_s = max(arrival.at_s + arrival.deadline_s for arrival in trace)
    longest_s = max(arrival.service_s for arrival in trace)
    end_s = start_s + latest_start_s + longest_s + SLACK_S
    _, undecided = await asyncio.wait(tasks, timeout=end_s - time.monotonic())
    for task in undecided:
        task.cancel()
    return Replay(tuple(await asyncio.gather(*tasks)), cores)


async def _send(arrival: Arrival, system: QueueUnderTest, start_s: float) -> Result:
    def now_s() -> float:
        return time.monotonic() - start_s

    sent_s = now_s()
    try:
        outcome = await system.run(arrival, start_s + arrival.at_s + arrival.deadline_s)
    except asyncio.CancelledError:  # by `replay`, which wants a result all the same
        return Result(arrival, Ending.ABANDONED, sent_s, left_s=now_s())
    except Exception as error:  # a system that breaks is a result
        return Result(arrival, Ending.FAILED, sent_s, left_s=now_s(), reason=repr(error))
    if outcome.started_s is None or outcome.finished_s is None:
        ending = Ending.REFUSED if outcome.refused else Ending.FAILED
        return Result(arrival, ending, sent_s, left_s=now_s(), reason=outcome.reason)
    started_s = outcome.started_s - start_s
    finished_s = outcome.finished_s - start_s
    return Result(arrival, Ending.SERVED, sent_s, started_s, started_s, finished_s, outcome.reason)


def _cpu_s() -> float:
    """User and system time of this process and its descendants, in seconds."""
    me = psutil.Process()
    total_s = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s
