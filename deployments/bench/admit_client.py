"""One client process of the rate bench: a real `RedisScheduler`, calls that are admitted and settled at once.

`python -m deployments.bench.admit_client --socket PATH --replicas 100 --concurrency 16 --seconds 3` prints
`ready`, waits for a line on standard input, and prints one JSON object when its time is over.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import random
import sys
import time

import uvloop

from cluster.clock import SystemClock
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import Grant
from deployments.bench.cost_cases import headline_case
from deployments.bench.percentiles import nearest_rank

WARM_CALLS = 50


class AdmitClient:
    """Calls as they come to `replicas` replicas with two budgets and two rates."""

    def __init__(self, scheduler: RedisScheduler, replicas: int) -> None:
        self._scheduler = scheduler
        self._case = headline_case(replicas)
        self._draw = random.Random(os.getpid())  # noqa: S311 (sizes of calls, not a secret)
        self._ids = (f"req-{os.getpid():08x}{number:016x}" for number in itertools.count())
        self.admits_ms: list[float] = []

    async def work(self, until_s: float) -> None:
        """Admit and settle, one call after the other, until `until_s` of `time.monotonic()`."""
        while time.monotonic() < until_s:
            await self.one_call()

    async def one_call(self) -> None:
        request_id = next(self._ids)
        began_s = time.monotonic()
        answer = await self._scheduler.admit(self._case.admission(request_id, self._draw))
        self.admits_ms.append((time.monotonic() - began_s) * 1000)
        if not isinstance(answer, Grant):
            raise RuntimeError(f"a call of the bench was not granted: {answer}")  # noqa: TRY004 (an answer)
        await self._scheduler.settle(self._case.settlement(request_id))


async def main() -> None:
    parser = argparse.ArgumentParser(description="internal: one client of the rate bench")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    client = connect(arguments.socket, operation_timeout_s=30)
    calls = AdmitClient(RedisScheduler(client, SystemClock()), arguments.replicas)
    for _ in range(WARM_CALLS):
        await calls.one_call()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    if not sys.stdin.readline():  # the parent is gone
        return
    calls.admits_ms.clear()
    began_s = time.monotonic()
    workers = [calls.work(began_s + arguments.seconds) for _ in range(arguments.concurrency)]
    await asyncio.gather(*workers)
    took_s = time.monotonic() - began_s
    await client.aclose()
    measured = {
        "pairs": len(calls.admits_ms),
        "took_s": took_s,
        "admit_p50_ms": nearest_rank(calls.admits_ms, 50),
        "admit_p99_ms": nearest_rank(calls.admits_ms, 99),
    }
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
