"""Workload, rate, limits and mix → the exact list of calls. Pure: the same input gives the same plan on
every worker, which is what lets each of them take its share without being told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from loadtest.bad_input import BadInput
from loadtest.workloads.arrivals import arrival_times
from loadtest.workloads.grammar import Closed, Trace, Workload
from loadtest.workloads.lengths import DrawLengths, from_rows, is_trace, parse_lengths
from loadtest.workloads.mix import Mix
from loadtest.workloads.planned_call import PlannedCall, TraceRow
from loadtest.workloads.rate import AS_IT_IS, Rate, scaled_process, scaled_rows
from loadtest.workloads.seeded import seeded

CYCLE_CALLS = 1000
"""A closed loop without a limit draws so many calls and begins again, each time with new texts."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a server's context holds. None: as planned."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PlanInput:
    workload: Workload
    mix: Mix
    lengths: str = "256,64"
    rate: Rate = AS_IT_IS
    duration_s: float | None = None
    limit: int | None = None
    seed: int = 1
    caps: Caps = Caps()


@dataclass(frozen=True, slots=True)
class Plan:
    """`users` is None in an open loop. `count` is None for a closed loop that only time ends."""

    calls: tuple[PlannedCall, ...]
    users: int | None
    count: int | None
    duration_s: float | None
    clipped_prompts: int
    clipped_outputs: int

    @property
    def is_open(self) -> bool:
        return self.users is None

    @property
    def span_s(self) -> float:
        """When the last call starts; 0 in a closed loop."""
        return self.calls[-1].at_s if self.calls else 0.0

    def share(self, worker: int, workers: int) -> Iterator[PlannedCall]:
        """Worker i of n takes the calls i, i + n, i + 2n …: together all, none twice."""
        if self.is_open:
            yield from self.calls[worker::workers]
            return
        index = worker
        while self.count is None or index < self.count:
            yield replace(self.calls[index % len(self.calls)], index=index)
            index += workers

    def fingerprint(self) -> str:
        """Equal plans have equal ones: workers on other machines are checked by it."""
        return hashlib.sha256(repr((self.calls, self.users, self.count)).encode()).hexdigest()


def make_plan(given: PlanInput, read: Callable[[Trace], list[TraceRow]]) -> Plan:
    """`read` finds and reads a trace. `limit` cuts before `3/s` is made the mean rate of what is left."""
    workload = scaled_process(given.workload, given.rate)
    if isinstance(workload, Trace):
        rows: Iterable[TraceRow] = scaled_rows(read(workload)[: given.limit], given.rate)
    else:
        if given.limit is None and given.duration_s is None:
            raise BadInput(f"--workload {workload} has no end of its own: give --duration or --limit")
        draw = (
            from_rows(read(Trace(given.lengths))) if is_trace(given.lengths) else parse_lengths(given.lengths)
        )
        rows = islice(_drawn(workload, draw, given.seed), _count(given, workload))
    if given.duration_s is not None:
        rows = takewhile(lambda row: row.at_s < (given.duration_s or 0), rows)
    return _plan(given, list(rows))


def _count(given: PlanInput, workload: Workload) -> int | None:
    if isinstance(workload, Closed):
        return min(given.limit or CYCLE_CALLS, CYCLE_CALLS)
    return given.limit


def _drawn(workload: Workload, draw: DrawLengths, seed: int) -> Iterator[TraceRow]:
    lengths = seeded(seed, "lengths")
    if isinstance(workload, (Closed, Trace)):
        while True:
            yield replace(draw(lengths), at_s=0.0)
    for at_s in arrival_times(workload, seeded(seed, "arrivals")):
        yield replace(draw(lengths), at_s=at_s)


def _plan(given: PlanInput, rows: Sequence[TraceRow]) -> Plan:
    if not rows:
        raise BadInput(f"--workload {given.workload}: no call starts within --duration {given.duration_s}s")
    random = seeded(given.seed, "mix")
    most_prompt = given.caps.prompt_tokens or max(row.prompt_tokens for row in rows)
    most_output = given.caps.output_tokens or max(row.output_tokens for row in rows)
    calls = []
    for index, row in enumerate(rows):
        tenant, task = given.mix.draw(random)
        calls.append(
            PlannedCall(
                index,
                row.at_s,
                min(row.prompt_tokens, most_prompt),
                min(row.output_tokens, most_output),
                row.blocks,
                tenant.name,
                task,
            )
        )
    closed = given.workload if isinstance(given.workload, Closed) else None
    return Plan(
        calls=tuple(calls),
        users=closed.users if closed else None,
        count=given.limit if closed else len(calls),
        duration_s=given.duration_s,
        clipped_prompts=sum(row.prompt_tokens > most_prompt for row in rows),
        clipped_outputs=sum(row.output_tokens > most_output for row in rows),
    )
