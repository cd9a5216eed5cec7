"""Server time of the scheduler's scripts, in us per call.

Calls go out in pipelined bursts, and the server's own count of the time in EVALSHA is read before and after each:
no client, no socket and no queue is in it. The machine's speed wanders by tens of percent, so the cases take
turns, burst by burst, and a figure is the median over its bursts; the fastest burst tells how much of it others
on the machine may have added.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.clock import SystemClock
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import AdmitRequest, Candidate, Grant, HeldLease, QueueTerms, ReplicaState, Waiting
from deployments.bench.cost_cases import (
    HEADLINE_REPLICAS,
    LEASE_TTL_MS,
    PRICE,
    RUNNING_PER_REPLICA,
    Case,
    PoolOfReplicas,
    headline_case,
)
from deployments.bench.recorded_commands import Command, CommandRecorder

BEAT_EVERY_S = 1.0
SETUP_BURST = 500
QUEUE_DEPTH = 200
FULL_POOL = PoolOfReplicas("full", replicas=10, slots=10)
"""Nothing but a running call's end gives a slot here: for the cost of the queue."""
PATIENT = QueueTerms(
    longest_queue=10_000, longest_wait_ms=86_400_000, ticket_ttl_ms=600_000, ageing_ms=600_000
)

GRANTED, WAITING, SETTLED = 1, 4, 1
"""First items of the replies of admit and settle."""

Say = Callable[[str], None]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Plan:
    cases: tuple[Case, ...]
    bursts: int = 30
    calls_per_burst: int = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """us per call: of the median burst and of the fastest one."""

    median: float
    fastest: float

    @classmethod
    def of(cls, bursts_us: Iterable[float]) -> Cost:
        measured = list(bursts_us)
        return cls(round(statistics.median(measured), 1), round(min(measured), 1))

    def to_json(self) -> dict[str, float]:
        return {"median": self.median, "fastest_burst": self.fastest}


def growth_exponent(us_of: Mapping[int, float]) -> float | None:
    """The slope of cost over size, both as logarithms (least squares): 1 is linear, 0 does not grow. None with
    fewer than two sizes."""
    if len(us_of) < 2:
        return None
    fit = statistics.linear_regression([math.log(size) for size in us_of], [math.log(us) for us in us_of.values()])
    return fit.slope


async def measure_scripts(socket_path: Path, plan: Plan, say: Say) -> dict[str, Any]:
    """The part of the report that is about server time."""
    bench = ScriptBench(socket_path, plan)
    try:
        say("setting up replicas and running calls")
        await bench.set_up()
        say(f"timing {len(plan.cases)} cases, {plan.bursts} bursts of {plan.calls_per_burst} calls each")
        for _ in range(plan.bursts):
            for case in plan.cases:
                await bench.admit_and_settle(case)
            await bench.wait_and_grant()
        await bench.other_operations()
        return bench.report()
    finally:
        await bench.close()


class ScriptBench:
    """All fleets live side by side in one server, so that the cases can take turns."""

    def __init__(self, socket_path: Path, plan: Plan) -> None:
        self._client = connect(str(socket_path), connect_timeout_s=30, operation_timeout_s=60)
        self._plan = plan
        self._recorder = CommandRecorder()
        self._draw = random.Random(1)  # noqa: S311 (sizes of calls, not a secret)
        self._requests = 0
        pools = {pool.name: pool for case in plan.cases for pool in case.pools}
        self._pools: dict[str, PoolOfReplicas] = pools | {FULL_POOL.name: FULL_POOL}
        self._beats: dict[str, list[Command]] = {}
        self._beaten_s: dict[str, float] = {}
        self._full = Case("full", (FULL_POOL,))
        self._running: deque[str] = deque()
        self._queued: deque[str] = deque()
        self._us: dict[str, list[float]] = defaultdict(list)
        """By what was measured: us per call of each burst."""

    async def close(self) -> None:
        await self._client.aclose()

    async def set_up(self) -> None:
        await self._teach_scripts()
        for pool in self._pools.values():
            self._beats[pool.name] = [await self._heartbeat(state) for state in pool.states()]
        for pool in self._pools.values():
            if pool is FULL_POOL:
                continue
            case = Case("running", (pool,))
            for ids in _chunks(self._ids(pool.replicas * RUNNING_PER_REPLICA), SETUP_BURST):
                await self._beat(pool)
                await self._burst([await self._admit(case, each) for each in ids], GRANTED)
        await self._beat(FULL_POOL)
        slots = FULL_POOL.replicas * FULL_POOL.slots
        self._running.extend(self._ids(slots))
        await self._burst([await self._admit(self._full, each) for each in self._running], GRANTED)
        self._queued.extend(self._ids(QUEUE_DEPTH))
        await self._burst([await self._admit(self._full, each) for each in self._queued], WAITING)

    async def admit_and_settle(self, case: Case) -> None:
        """One burst of each."""
        ids = self._ids(self._plan.calls_per_burst)
        for pool in case.pools:
            await self._beat(pool)
        admits = [await self._admit(case, each) for each in ids]
        self._us[f"admit {case.name}"].append(await self._burst(admits, GRANTED))
        settles = [await self._settle(case, each) for each in ids]
        self._us[f"settle {case.name}"].append(await self._burst(settles, SETTLED))

    async def wait_and_grant(self) -> None:
        """Behind `QUEUE_DEPTH` waiting calls: as many that join the queue as end, and make room."""
        count = min(self._plan.calls_per_burst, len(self._running))
        joining, ending = self._ids(count), [self._running.popleft() for _ in range(count)]
        await self._beat(FULL_POOL)
        waits = [await self._admit(self._full, each) for each in joining]
        self._us["admit that waits"].append(await self._burst(waits, WAITING))
        self._queued.extend(joining)
        ends = [await self._settle(self._full, each) for each in ending]
        self._us["settle that grants"].append(await self._burst(ends, SETTLED))
        # One tenant and one class: granted in the order of their coming.
        self._running.extend(self._queued.popleft() for _ in range(count))

    async def other_operations(self) -> None:
        waiting = [Waiting(each, 0, _candidate(FULL_POOL), 0, 0) for each in self._queued]
        leases = [HeldLease(Grant(each, 0, _candidate(FULL_POOL), "", "", 0, 0)) for each in self._running]
        poll = await self._recorder.record(lambda it: it.poll(waiting, 600_000), [[0]] * len(waiting))
        renew = await self._recorder.record(lambda it: it.renew("bench", leases, LEASE_TTL_MS), ["", 0])
        for _ in range(self._plan.bursts):
            self._us["poll, per waiter"].append(await self._burst([poll]) / len(waiting))
            self._us["renew, per lease"].append(await self._burst([renew]) / len(leases))
            for pool in self._pools.values():
                await self._beat(pool)
                sweep = await self._recorder.record(lambda it, name=pool.name: it.reap([name]), [[], []])
                self._us[f"sweep {pool.name}"].append(await self._burst([sweep]))

    def report(self) -> dict[str, Any]:
        costs = {name: Cost.of(bursts_us) for name, bursts_us in self._us.items()}
        sizes = [n for n in HEADLINE_REPLICAS if f"admit {headline_case(n).name}" in costs]
        admit = {n: costs[f"admit {n}"] for n in sizes}
        exponent = growth_exponent({n: cost.median for n, cost in admit.items()})
        return {
            "admit_us_server": {str(n): cost.median for n, cost in admit.items()},
            "admit_us_server_fastest_burst": {str(n): cost.fastest for n, cost in admit.items()},
            "settle_us_server": {str(n): costs[f"settle {n}"].median for n in sizes},
            "admit_growth": {
                "exponent": None if exponent is None else round(exponent, 3),
                "largest_over_smallest": round(admit[sizes[-1]].median / admit[sizes[0]].median, 2),
            }
            if sizes
            else None,
            "cases": [
                {
                    "case": case.name,
                    "replicas": [pool.replicas for pool in case.pools],
                    "budgets": case.budgets,
                    "rates": case.rates,
                    "adapters": case.adapters,
                    "admit_us": costs[f"admit {case.name}"].to_json(),
                    "settle_us": costs[f"settle {case.name}"].to_json(),
                }
                for case in self._plan.cases
            ],
            "other_us": {
                name: cost.to_json()
                for name, cost in costs.items()
                if name not in {f"{which} {case.name}" for case in self._plan.cases for which in ("admit", "settle")}
            },
            "bursts": self._plan.bursts,
            "calls_per_burst": self._plan.calls_per_burst,
        }

    # Parts.

    async def _teach_scripts(self) -> None:
        """The server gets a script's text with its first call; a burst cannot carry it."""
        scheduler = RedisScheduler(self._client, SystemClock())
        pool = PoolOfReplicas("first", 1)
        (state,) = pool.states()
        case = Case("first", (pool,))
        await scheduler.rebuild((), grace_ms=0)
        await scheduler.heartbeat(state)
        grant = await scheduler.admit(case.admission("first", self._draw))
        if not isinstance(grant, Grant):
            raise RuntimeError(f"the first call of the bench was not granted: {grant}")
        await scheduler.settle(case.settlement("first"))
        await scheduler.poll((Waiting("first", 0, grant.candidate, 0, 0),), 1)
        await scheduler.renew("bench", (), LEASE_TTL_MS)
        await scheduler.reap((pool.name,))
        await scheduler.deregister(state)

    async def _heartbeat(self, state: ReplicaState) -> Command:
        return await self._recorder.record(lambda it: it.heartbeat(state), "OK")

    async def _admit(self, case: Case, request_id: str) -> Command:
        queue = PATIENT if case is self._full else None
        request: AdmitRequest = case.admission(request_id, self._draw, queue=queue)
        return await self._recorder.record(lambda it: it.admit(request), [0, "capacity", 0, ""])

    async def _settle(self, case: Case, request_id: str) -> Command:
        return await self._recorder.record(lambda it: it.settle(case.settlement(request_id)), [3])

    async def _beat(self, pool: PoolOfReplicas) -> None:
        """Keep its replicas alive."""
        if time.monotonic() - self._beaten_s.get(pool.name, -math.inf) > BEAT_EVERY_S:
            beats_us = [await self._burst(chunk) for chunk in _chunks(self._beats[pool.name], SETUP_BURST)]
            kind = "heartbeat with 100 adapters" if pool.adapters else "heartbeat"
            self._us[kind].append(statistics.mean(beats_us))
            self._beaten_s[pool.name] = time.monotonic()

    async def _burst(self, commands: Sequence[Command], wanted: int | None = None) -> float:
        """Server time, us per command. Every reply must begin with `wanted`."""
        before_us = await self._evalsha_us()
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute()
        after_us = await self._evalsha_us()
        for reply in replies:
            if wanted is not None and reply[0] != wanted:
                raise RuntimeError(f"a call of the bench was answered with {reply}")
        return (after_us - before_us) / len(commands)

    async def _evalsha_us(self) -> int:
        stats: dict[str, dict[str, int]] = await self._client.info("commandstats")
        return stats["cmdstat_evalsha"]["usec"] if "cmdstat_evalsha" in stats else 0

    def _ids(self, count: int) -> list[str]:
        self._requests += count
        return [f"req-{number:024x}" for number in range(self._requests - count, self._requests)]


def _candidate(pool: PoolOfReplicas) -> Candidate:
    return Candidate("bench", pool.name, "base", None, PRICE, 512, 0)


def _chunks(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
