"""Server time of the scheduler's scripts, in us per call.

Calls go out in pipelined bursts, and the server's own count of the time in EVALSHA is read before and after:
no client, no socket and no queue is in it. Where others keep the machine busy, that time counts too, by tens
of percent. So the cases take turns, burst by burst; a figure is the median over its bursts, the fastest burst
says what it would be on a quiet machine. The CPU time of the server's main thread stands beside it: it counts
no work of others, but the reading of commands and the writing of replies.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.clock import SystemClock
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import Candidate, Grant, HeldLease, QueueTerms, ReplicaState, Waiting
from deployments.bench.cost_cases import (
    ADAPTERS_PER_REPLICA,
    HEADLINE_REPLICAS,
    LEASE_TTL_MS,
    PRICE,
    RUNNING_PER_REPLICA,
    Case,
    PoolOfReplicas,
    headline_case,
)
from deployments.bench.recorded_commands import Command, CommandRecorder

BEAT_EVERY_S = 2.0
"""Dead after 3 s. The client takes a second to pack heartbeats of 1,000 replicas with 100 adapters each."""
LEAST_BURSTS = 5
SETUP_BURST = 500
QUEUE_DEPTH = 200
FULL_POOL = PoolOfReplicas("full", replicas=10, slots=10)
"""For the cost of the queue: nothing but the end of a running call gives a slot here."""
FULL = Case("full", (FULL_POOL,))
FOR_EVER_MS = 600_000
PATIENT = QueueTerms(10_000, longest_wait_ms=10**9, ticket_ttl_ms=FOR_EVER_MS, ageing_ms=FOR_EVER_MS)

GRANTED, WAITING, SETTLED = 1, 4, 1
"""First items of the replies of admit and settle."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Plan:
    """`phases`: the fleets of one phase live side by side in one empty server, so that its cases can take
    turns. After `longest_s` of turns a phase has as many bursts as it has, on a machine that is busy."""

    phases: tuple[tuple[Case, ...], ...]
    bursts: int = 16
    longest_s: float = 25.0
    calls_per_burst: int = 100
    """Twice 50: Valkey collects Lua's garbage after every 50 scripts, which takes as long as several of
    them. So every burst pays for two collections."""


@dataclass(frozen=True, slots=True)
class Burst:
    """us per call: in scripts, and of the main thread's CPU time."""

    script_us: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Cost:
    """us per call, over several bursts."""

    median_us: float
    fastest_us: float
    cpu_us: float
    """Median too."""
    bursts: int

    @classmethod
    def of(cls, bursts: Sequence[Burst]) -> Cost:
        script_us = [each.script_us for each in bursts]
        cpu_us = statistics.median(each.cpu_us for each in bursts)
        return cls(
            median_us=round(statistics.median(script_us), 1),
            fastest_us=round(min(script_us), 1),
            cpu_us=round(cpu_us, 1),
            bursts=len(bursts),
        )

    def to_json(self) -> dict[str, float]:
        return {
            "median": self.median_us,
            "fastest_burst": self.fastest_us,
            "cpu": self.cpu_us,
            "bursts": self.bursts,
        }


@dataclass(frozen=True, slots=True)
class ScriptCosts:
    """`other` by a name for people."""

    admit: Mapping[Case, Cost]
    settle: Mapping[Case, Cost]
    other: Mapping[str, Cost]


def growth_exponent(us_of: Mapping[int, float]) -> float | None:
    """The slope of cost over size, both as logarithms (least squares): 1 is linear, 0 does not grow. None
    with fewer than two sizes."""
    if len(us_of) < 2:
        return None
    sizes, costs_us = [math.log(n) for n in us_of], [math.log(us) for us in us_of.values()]
    return statistics.linear_regression(sizes, costs_us).slope


def report(costs: ScriptCosts) -> dict[str, Any]:
    """The fields of the command's JSON that come from here. Headline figures are medians over bursts."""
    headline = {n: headline_case(n) for n in HEADLINE_REPLICAS if headline_case(n) in costs.admit}
    medians_us = {n: costs.admit[case].median_us for n, case in headline.items()}
    exponent = growth_exponent(medians_us)
    return {
        "admit_us_server": {str(n): us for n, us in medians_us.items()},
        "admit_us_server_fastest_burst": {
            str(n): costs.admit[case].fastest_us for n, case in headline.items()
        },
        "settle_us_server": {str(n): costs.settle[case].median_us for n, case in headline.items()},
        "admit_growth_exponent": None if exponent is None else round(exponent, 3),
        "cases": [
            {
                "case": case.name,
                "replicas": [pool.replicas for pool in case.pools],
                "budgets": case.budgets,
                "rates": case.rates,
                "adapters": case.adapters,
                "admit_us": admit.to_json(),
                "settle_us": costs.settle[case].to_json(),
            }
            for case, admit in costs.admit.items()
        ],
        "other_us": {name: cost.to_json() for name, cost in costs.other.items()},
    }


async def measure_scripts(socket_path: Path, plan: Plan) -> ScriptCosts:
    """On a server that holds nothing else. Empties it."""
    admit: dict[Case, list[Burst]] = defaultdict(list)
    settle: dict[Case, list[Burst]] = defaultdict(list)
    other: dict[str, list[Burst]] = defaultdict(list)
    for cases in plan.phases:
        bench = ScriptBench(
            socket_path, plan.calls_per_burst, {pool for case in cases for pool in case.pools}
        )
        try:
            await bench.set_up()
            began_s = time.monotonic()
            for done in range(plan.bursts):
                if done >= LEAST_BURSTS and time.monotonic() > began_s + plan.longest_s:
                    break
                for case in cases:
                    admitted, settled = await bench.admit_and_settle(case)
                    admit[case].append(admitted)
                    settle[case].append(settled)
                for name, burst in (await bench.other_operations()).items():
                    other[name].append(burst)
            for pool, beats in bench.heartbeats.items():
                other[f"heartbeat with {ADAPTERS_PER_REPLICA if pool.adapters else 0} adapters"] += beats
        finally:
            await bench.close()
    return ScriptCosts(_costs(admit), _costs(settle), _costs(other))


class ScriptBench:
    """One phase. Keeps the replicas alive and the queue as long as it is."""

    def __init__(self, socket_path: Path, calls_per_burst: int, pools: Iterable[PoolOfReplicas]) -> None:
        self._client = connect(str(socket_path), connect_timeout_s=30, operation_timeout_s=60)
        self._calls_per_burst = calls_per_burst
        self._pools = sorted(pools, key=lambda pool: pool.name)
        self._scheduler = RedisScheduler(self._client, SystemClock())
        self._recorder = CommandRecorder()
        self._draw = random.Random(1)  # noqa: S311 (sizes of calls, not a secret)
        self._requests = 0
        self._beat_commands: dict[PoolOfReplicas, list[Command]] = {}
        self._beaten_s: dict[PoolOfReplicas, float] = {}
        self._running: deque[str] = deque()
        self._queued: deque[str] = deque()
        self.heartbeats: dict[PoolOfReplicas, list[Burst]] = defaultdict(list)

    async def close(self) -> None:
        await self._client.aclose()

    async def set_up(self) -> None:
        await self._client.flushall()
        await self._teach_scripts()
        for pool in (*self._pools, FULL_POOL):
            self._beat_commands[pool] = [await self._heartbeat(state) for state in pool.states()]
        for pool in self._pools:
            for ids in _chunks(self._ids(pool.replicas * RUNNING_PER_REPLICA), SETUP_BURST):
                await self._beat(pool)
                await self._burst(
                    [await self._admit(Case("running", (pool,)), each) for each in ids], GRANTED
                )
        await self._beat(FULL_POOL)
        self._running.extend(self._ids(FULL_POOL.replicas * FULL_POOL.slots))
        await self._burst([await self._admit(FULL, each) for each in self._running], GRANTED)
        self._queued.extend(self._ids(QUEUE_DEPTH))
        await self._burst([await self._admit(FULL, each) for each in self._queued], WAITING)

    async def admit_and_settle(self, case: Case) -> tuple[Burst, Burst]:
        for pool in case.pools:
            await self._beat(pool)
        ids = self._ids(self._calls_per_burst)
        admitted = await self._burst([await self._admit(case, each) for each in ids], GRANTED)
        settled = await self._burst([await self._settle(case, each) for each in ids], SETTLED)
        return admitted, settled

    async def other_operations(self) -> dict[str, Burst]:
        """Each once, by name."""
        await self._beat(FULL_POOL)
        measured = {}
        # As many join the queue as end and make room. One tenant, one class: first come, first served.
        count = min(self._calls_per_burst, len(self._running))
        joining, ending = self._ids(count), [self._running.popleft() for _ in range(count)]
        waits = [await self._admit(FULL, each) for each in joining]
        measured[f"admit that waits behind {QUEUE_DEPTH}"] = await self._burst(waits, WAITING)
        ends = [await self._settle(FULL, each) for each in ending]
        measured["settle that grants the slot to a waiter"] = await self._burst(ends, SETTLED)
        self._queued.extend(joining)
        self._running.extend(self._queued.popleft() for _ in range(count))

        waiting = [Waiting(each, 0, _candidate(FULL_POOL), 0, 0) for each in self._queued]
        poll = await self._recorder.record(lambda it: it.poll(waiting, FOR_EVER_MS))
        measured[f"poll of {len(waiting)} waiters"] = await self._burst([poll])
        running = [Waiting(each, 0, _candidate(FULL_POOL), 0, 0) for each in self._running]
        answers = await self._scheduler.poll(running, FOR_EVER_MS)
        leases = [HeldLease(each) for each in answers if isinstance(each, Grant)]
        renew = await self._recorder.record(lambda it: it.renew("bench", leases, LEASE_TTL_MS))
        measured[f"renew of {len(leases)} leases"] = await self._burst([renew])
        for pool in self._pools:
            await self._beat(pool)
            sweep = await self._sweep(pool)
            measured[f"sweep of {pool.replicas} replicas"] = await self._burst([sweep])
        return measured

    # Parts.

    async def _teach_scripts(self) -> None:
        """The server gets a script's text with its first call; a burst cannot carry it."""
        scheduler = self._scheduler
        case = Case("first", (PoolOfReplicas("first", 1),))
        (state,) = case.pools[0].states()
        await scheduler.rebuild((), grace_ms=0)
        await scheduler.heartbeat(state)
        await scheduler.admit(case.admission("first", self._draw))
        await scheduler.settle(case.settlement("first"))
        await scheduler.poll((Waiting("first", 0, _candidate(case.pools[0]), 0, 0),), 1)
        await scheduler.renew("bench", (), LEASE_TTL_MS)
        await scheduler.reap((state.pool,))
        await scheduler.deregister(state)

    async def _heartbeat(self, state: ReplicaState) -> Command:
        return await self._recorder.record(lambda it: it.heartbeat(state))

    async def _admit(self, case: Case, request_id: str) -> Command:
        request = case.admission(request_id, self._draw, queue=PATIENT if case is FULL else None)
        return await self._recorder.record(lambda it: it.admit(request))

    async def _settle(self, case: Case, request_id: str) -> Command:
        return await self._recorder.record(lambda it: it.settle(case.settlement(request_id)))

    async def _sweep(self, pool: PoolOfReplicas) -> Command:
        return await self._recorder.record(lambda it: it.reap([pool.name]))

    async def _beat(self, pool: PoolOfReplicas) -> None:
        """Keep its replicas alive: one heartbeat of each, if it is time."""
        if time.monotonic() - self._beaten_s.get(pool, -math.inf) > BEAT_EVERY_S:
            self._beaten_s[pool] = time.monotonic()
            self.heartbeats[pool].append(await self._burst(self._beat_commands[pool]))

    async def _burst(self, commands: Sequence[Command], wanted: int | None = None) -> Burst:
        """Every reply must begin with `wanted`."""
        before = await self._server_us()
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute()
        after = await self._server_us()
        for reply in replies:
            if wanted is not None and reply[0] != wanted:
                raise RuntimeError(f"a call of the bench was answered with {reply}")
        count = len(commands)
        return Burst((after.script_us - before.script_us) / count, (after.cpu_us - before.cpu_us) / count)

    async def _server_us(self) -> Burst:
        """Both sums since the server's start."""
        info: dict[str, Any] = await self._client.info("commandstats", "cpu")
        cpu_s = info["used_cpu_sys_main_thread"] + info["used_cpu_user_main_thread"]
        return Burst(info["cmdstat_evalsha"]["usec"] if "cmdstat_evalsha" in info else 0, cpu_s * 1e6)

    def _ids(self, count: int) -> list[str]:
        self._requests += count
        return [f"req-{number:024x}" for number in range(self._requests - count, self._requests)]


def _costs(bursts_of: Mapping[Item, Sequence[Burst]]) -> dict[Item, Cost]:
    return {each: Cost.of(bursts) for each, bursts in bursts_of.items()}


def _candidate(pool: PoolOfReplicas) -> Candidate:
    return Candidate("bench", pool.name, "base", None, PRICE, 512, 0)


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
