"""The real Valkey of the tests, and both schedulers behind one face."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from cluster.clock import ManualClock
from cluster.scheduler.memory_scheduler import MemoryScheduler
from cluster.scheduler.redis_scheduler import RedisScheduler, connect
from cluster.scheduler.scheduler import Scheduler
from deployments.state_folder import StateFolder
from deployments.supervisor import ray_environment
from deployments.valkey import start_server, stop_server


def pytest_configure() -> None:
    """Ray reads its environment when it is imported, so it is set before any test module is."""
    folder = Path(tempfile.mkdtemp(prefix="sprat-ray-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    state = StateFolder(folder)
    state.make()
    state.secrets()
    os.environ |= ray_environment(state)


@dataclass
class SchedulerUnderTest:
    """`clock` also says which day it is. Where `sleeps`, leases and heartbeats live by a real clock."""

    scheduler: Scheduler
    clock: ManualClock
    sleeps: bool

    async def advance_ms(self, by_ms: int) -> None:
        self.clock.advance(by_ms)
        if self.sleeps:
            await asyncio.sleep(by_ms / 1000)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """Not tmp_path: a unix socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="sprat-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_url(short_folder: Path) -> Iterator[str]:
    """A real server, empty at the start of the session only."""
    socket_path = short_folder / "valkey.sock"
    process = start_server(socket_path, short_folder / "valkey")
    yield f"unix://{socket_path}"
    stop_server(process)


def patient_client(url: str) -> Redis:
    """For tests that are not about time: a busy machine is no error."""
    return connect(url, connect_timeout_s=30, operation_timeout_s=30)


@pytest.fixture
async def redis_scheduler(valkey_url: str) -> AsyncIterator[SchedulerUnderTest]:
    client = patient_client(valkey_url)
    await client.flushall()
    clock = ManualClock()
    yield SchedulerUnderTest(RedisScheduler(client, clock), clock, sleeps=True)
    await client.aclose()


@pytest.fixture
def memory_scheduler() -> SchedulerUnderTest:
    clock = ManualClock()
    return SchedulerUnderTest(MemoryScheduler(clock), clock, sleeps=False)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.contract)])
def scheduler(request: pytest.FixtureRequest) -> SchedulerUnderTest:
    return request.getfixturevalue(f"{request.param}_scheduler")
