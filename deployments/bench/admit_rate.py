"""Calls per second that client processes get through one server, and what an admit takes as a client sees it.

Each process runs `admit_client.py`. On a machine with few cores the clients are the limit, not the server:
`server_busy` tells.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster.clock import SystemClock
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import HEARTBEAT_PERIOD_S
from deployments.bench.cost_cases import PoolOfReplicas, fleet

REPLICAS = 100
CONCURRENCY = 16
"""Calls at a time in each process."""
PROCESSES = (1, 4)


@dataclass(frozen=True, slots=True)
class Run:
    """Of several clients at once. `cpu_s` and `script_s` are the server's: of its main thread, in scripts."""

    concurrency: int
    clients: Sequence[dict[str, float]]
    took_s: float
    cpu_s: float
    script_s: float

    def row(self) -> dict[str, Any]:
        """Times of the slowest client. A pair is one admit and its settle."""
        pairs = sum(each["pairs"] for each in self.clients)
        return {
            "processes": len(self.clients),
            "concurrency": self.concurrency,
            "pairs_per_s": round(sum(each["pairs"] / each["took_s"] for each in self.clients)),
            "admit_p50_ms": round(max(each["admit_p50_ms"] for each in self.clients), 3),
            "admit_p99_ms": round(max(each["admit_p99_ms"] for each in self.clients), 3),
            "script_us_per_pair": round(self.script_s / pairs * 1e6, 1),
            "server_busy": round(self.cpu_s / self.took_s, 2),
        }


async def measure_rates(socket_path: Path, seconds: float) -> dict[str, Any]:
    """The fields of the command's JSON that come from here; each of three runs takes `seconds`. On a server
    that holds nothing else."""
    client = connect(str(socket_path), connect_timeout_s=30, operation_timeout_s=30)
    try:
        scheduler = RedisScheduler(client, SystemClock())
        await scheduler.rebuild((), grace_ms=0)
        async with _living(scheduler, fleet(REPLICAS)):
            alone = await _run(client, socket_path, processes=1, concurrency=1, seconds=seconds)
            crowds = [
                await _run(client, socket_path, processes=each, concurrency=CONCURRENCY, seconds=seconds)
                for each in PROCESSES
            ]
    finally:
        await client.aclose()
    return report(alone, crowds)


def report(alone: Run, crowds: Sequence[Run]) -> dict[str, Any]:
    rows = [each.row() for each in (alone, *crowds)]
    return {
        "admits_per_s": {str(row["processes"]): row["pairs_per_s"] for row in rows[1:]},
        "admits_per_s_counts": "pairs of admit and settle",
        "rtt_ms": {"p50": rows[0]["admit_p50_ms"], "p99": rows[0]["admit_p99_ms"]},
        "rates": rows,
    }


async def _run(client: Any, socket_path: Path, *, processes: int, concurrency: int, seconds: float) -> Run:
    """Clients that begin together."""
    options = {"socket": socket_path, "replicas": REPLICAS, "concurrency": concurrency, "seconds": seconds}
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client_process(options)) for _ in range(processes)]
        for each in clients:
            await each.line()
        cpu_s, script_s = await _server_s(client)
        began_s = time.monotonic()
        for each in clients:
            each.go()
        measured = [json.loads(await each.line()) for each in clients]
        took_s = time.monotonic() - began_s
        cpu_after_s, script_after_s = await _server_s(client)
    return Run(concurrency, measured, took_s, cpu_after_s - cpu_s, script_after_s - script_s)


class _ClientProcess:
    def __init__(self, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def go(self) -> None:
        self._stdin.write(b"go\n")

    async def line(self) -> bytes:
        line = await self._stdout.readline()
        if not line:
            raise RuntimeError("a client of the bench ended early; its error stands above")
        return line


@asynccontextmanager
async def _client_process(options: dict[str, Any]) -> AsyncIterator[_ClientProcess]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deployments.bench.admit_client"),
        *(f"--{name}={value}" for name, value in options.items()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield _ClientProcess(
            cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
        )
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _server_s(client: Any) -> tuple[float, float]:
    """CPU seconds of the main thread and seconds in scripts, since the server's start."""
    info = await client.info("commandstats", "cpu")
    cpu_s = info["used_cpu_sys_main_thread"] + info["used_cpu_user_main_thread"]
    return cpu_s, info["cmdstat_evalsha"]["usec"] / 1e6


@asynccontextmanager
async def _living(scheduler: RedisScheduler, pool: PoolOfReplicas) -> AsyncIterator[None]:
    """Replicas that send heartbeats while this lasts."""

    async def beat() -> None:
        await asyncio.gather(*(scheduler.heartbeat(state) for state in pool.states()))

    async def beat_on() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_PERIOD_S)
            await beat()

    await beat()
    await beat()  # the first may have been an EVAL, which teaches the server the script
    beating = asyncio.create_task(beat_on())
    try:
        yield
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
