"""Every way in which a store can refuse opens the breaker, and none hangs a caller. A scripted server
stands in for what a real one cannot be made to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.clock import ManualClock
from cluster.errors import SchedulerUnavailable
from cluster.scheduler.breaker import Breaker
from cluster.scheduler.guarded_scheduler import GuardedScheduler
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from tests.builders import admit_request
from tests.fault_matrix import fault

pytestmark = pytest.mark.contract

TIMEOUT_S = 0.1


@asynccontextmanager
async def scripted_server(folder: Path, reply: bytes | None) -> AsyncIterator[str]:
    """Says `reply` to every command but the greeting of redis-py; None: accepts, and never answers."""
    path = folder / "scripted.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                for _ in range(data.count(b"SETINFO")):
                    writer.write(b"+OK\r\n")
                if reply is not None and (b"EVAL" in data or b"PING" in data):
                    writer.write(reply)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()


REPLIES = {
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "readonly": b"-READONLY You can't write against a read only replica.\r\n",
    "out of memory": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "moved": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "cluster down": b"-CLUSTERDOWN The cluster is down\r\n",
    "no script, ever": b"-NOSCRIPT No matching script.\r\n",
    "busy": b"-BUSY Redis is busy running a script.\r\n",
    "no password": b"-NOAUTH Authentication required.\r\n",
    "no answer": None,
}


@fault(
    "the store answers LOADING, READONLY, OOM, MOVED, CLUSTERDOWN, NOSCRIPT, BUSY, NOAUTH or not at all",
    "each opens the breaker, and no caller waits longer than the timeout",
)
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
async def test_each_refusal_opens_the_breaker(short_folder: Path, reply: bytes | None) -> None:
    """LiteLLM #34299 (errors were swallowed), #36804 (cluster errors were not counted)."""
    changes: list[tuple[bool, str]] = []
    breaker = Breaker(3, lambda is_open, reason: changes.append((is_open, reason)))
    async with scripted_server(short_folder, reply) as url:
        client = connect(url, connect_timeout_s=TIMEOUT_S, operation_timeout_s=TIMEOUT_S)
        scheduler = GuardedScheduler(RedisScheduler(client, ManualClock()), breaker)
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(SchedulerUnavailable):
                await scheduler.admit(admit_request())
        assert time.monotonic() - started < 3 * (2 * TIMEOUT_S + 0.2)
        assert [is_open for is_open, _ in changes] == [True]
        await scheduler.close()


@fault("all connections of the pool are taken by a store that hangs", "who waits for one gives up in time")
async def test_a_full_pool_opens_the_breaker(short_folder: Path) -> None:
    breaker = Breaker(3, lambda _open, _reason: None)
    async with scripted_server(short_folder, None) as url:
        client = connect(url, connect_timeout_s=TIMEOUT_S, operation_timeout_s=TIMEOUT_S)
        scheduler = GuardedScheduler(RedisScheduler(client, ManualClock()), breaker)
        started = time.monotonic()
        answers = await asyncio.gather(
            *(scheduler.admit(admit_request(f"r{i}")) for i in range(200)), return_exceptions=True
        )
        assert all(isinstance(answer, SchedulerUnavailable) for answer in answers)
        assert time.monotonic() - started < 2.0
        assert breaker.is_open
        await scheduler.close()


@fault("nothing listens", "refused at once, and found again when it is there")
async def test_a_breaker_that_is_open_costs_nothing(short_folder: Path) -> None:
    """10,000 calls while it is open: no connection, one transition, little CPU per call (LiteLLM PR
    40620)."""
    changes: list[bool] = []
    breaker = Breaker(3, lambda is_open, _reason: changes.append(is_open))
    client = connect(f"unix://{short_folder}/nothing.sock", connect_timeout_s=TIMEOUT_S)
    scheduler = GuardedScheduler(RedisScheduler(client, ManualClock()), breaker)
    for _ in range(3):
        with pytest.raises(SchedulerUnavailable):
            await scheduler.ping()

    started = time.process_time()
    for _ in range(10_000):
        with pytest.raises(SchedulerUnavailable):
            await scheduler.admit(admit_request())
    per_call_us = (time.process_time() - started) / 10_000 * 1e6

    assert changes == [True]
    assert per_call_us < 200
    await scheduler.close()


async def test_only_a_row_of_failures_opens_and_one_success_closes() -> None:
    changes: list[bool] = []
    breaker = Breaker(3, lambda is_open, _reason: changes.append(is_open))
    for outcome in "FFSFFSFFF":
        breaker.failed("x") if outcome == "F" else breaker.succeeded()
    assert changes == [True]
    breaker.failed("x")
    breaker.succeeded()
    breaker.succeeded()
    assert changes == [True, False]
