"""The real Valkey of the tests, and both schedulers behind one face."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.engine import Engine

from cluster import keys
from cluster.clock import ManualClock
from cluster.scheduler.memory_scheduler import MemoryScheduler
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import Scheduler
from cluster.store import open_store, sqlite_url
from cluster.store.schema import metadata
from deployments.free_port import free_port
from deployments.ray_cluster import ray_environment
from deployments.state_folder import StateFolder
from deployments.valkey import find_server_binary, start_server, stop_server
from tests.builders import NOON_MS
from tests.fault_matrix import configure_fault_matrix, measured, pytest_addoption, recovered  # noqa: F401 (hooks)
from tests.postgres import RunningPostgres, start_postgres
from tests.stopped_time import StoppedServer, stop_time

# On a busy machine of two cores examples are slow; that says nothing about the code.
hypothesis_settings.register_profile(
    "slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("slow machine")


def pytest_configure(config: pytest.Config) -> None:
    """Ray reads its environment when it is imported, so it is set before any test module is."""
    # A shell starts what runs in its background deaf to Ctrl-C, and all that it starts inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="sprat-ray-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    state = StateFolder(folder)
    state.make()
    state.secrets()
    os.environ |= ray_environment(state)
    # As patient as ever in numbers of checks; but tests that kill a raylet wait for Ray to notice.
    os.environ |= {"RAY_health_check_period_ms": "1000"}
    configure_fault_matrix(config)


Notice = tuple[str, str, int, int, str]
"""A grant to a waiter: gateway, request id, step, fence, replica."""


@dataclass
class SchedulerUnderTest:
    """`clock` also says which day it is. `notices` gives the grants to waiters since it was called last."""

    scheduler: Scheduler
    clock: ManualClock
    advance_ms: Callable[[int], Awaitable[None]]
    lose_everything: Callable[[], Awaitable[None]]
    notices: Callable[[], Awaitable[list[Notice]]]


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


@pytest.fixture(scope="session")
def cluster_url(short_folder: Path) -> Iterator[str]:
    """A server in cluster mode that owns all slots. On TCP: cluster mode needs a port."""
    folder = short_folder / "cluster"
    folder.mkdir()
    port, bus_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            *(find_server_binary() or "valkey-server", "--bind", "127.0.0.1", "--port", str(port)),
            *("--cluster-enabled", "yes", "--cluster-port", str(bus_port), "--dir", str(folder)),
            *("--save", "", "--cluster-require-full-coverage", "no"),
        ],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}"
    asyncio.run(until_it_owns_all_slots(url))
    yield url
    stop_server(process)


async def until_it_owns_all_slots(url: str) -> None:
    client = patient_client(url)
    deadline = time.monotonic() + 15
    assigned = False
    while time.monotonic() < deadline:
        try:
            if not assigned:
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                assigned = True
            if "cluster_state:ok" in str(await client.execute_command("CLUSTER", "INFO")):
                await client.aclose()
                return
        except RedisConnectionError:  # it is still starting
            pass
        await asyncio.sleep(0.05)
    pytest.fail("the one-node cluster did not get ready within 15 s")


@pytest.fixture(scope="session")
def postgres() -> Iterator[RunningPostgres]:
    """A real server. Fails, with what to install, where there is none."""
    server = start_postgres()
    yield server
    server.stop()


STORES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.contract))


@pytest.fixture(params=STORES)
def empty_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table, the test's own."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "store.sqlite")
    server: RunningPostgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def postgres_store_url(postgres: RunningPostgres) -> str:
    """One for the session: making a database takes longer than most tests."""
    url = postgres.new_database()
    open_store(url).dispose()
    return url


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store at the newest revision, with nothing in it. A test that changes its tables takes
    `empty_store_url`."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "store.sqlite")
    url: str = request.getfixturevalue("postgres_store_url")
    engine = open_store(url)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()
    return url


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    opened = open_store(store_url)
    yield opened
    opened.dispose()


def patient_client(url: str) -> Redis:
    """For tests that are not about time: a busy machine is no error."""
    return connect(url, connect_timeout_s=30, operation_timeout_s=30)


@pytest.fixture
async def redis_scheduler(valkey_url: str) -> AsyncIterator[SchedulerUnderTest]:
    """By the server's own clock."""
    client = patient_client(valkey_url)
    await client.flushall()
    clock = ManualClock()

    async def advance_ms(by_ms: int) -> None:
        clock.advance(by_ms)
        await asyncio.sleep(by_ms / 1000)

    async with client.pubsub() as grants:
        notices = await notices_of(client, grants)
        yield SchedulerUnderTest(RedisScheduler(client, clock), clock, advance_ms, client.flushall, notices)
    await client.aclose()


@pytest.fixture
async def stopped_redis_scheduler(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SchedulerUnderTest]:
    client = patient_client(valkey_url)
    async with stopped_scheduler(client, monkeypatch) as under_test:
        yield under_test
    await client.aclose()


@asynccontextmanager
async def stopped_scheduler(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SchedulerUnderTest]:
    stop_time(monkeypatch)
    server = StoppedServer(client, ManualClock(NOON_MS))
    await server.begin()
    async with client.pubsub() as grants:
        yield SchedulerUnderTest(
            RedisScheduler(client, server.clock),
            server.clock,
            server.advance_ms,
            server.begin,
            await notices_of(client, grants),
        )


async def notices_of(client: Redis, grants: PubSub) -> Callable[[], Awaitable[list[Notice]]]:
    every_gateway = keys.grants_channel("")
    await grants.psubscribe(f"{every_gateway}*")

    async def notices() -> list[Notice]:
        await client.publish(every_gateway, "the end")
        found: list[Notice] = []
        async for message in grants.listen():
            if message["data"] == "the end":
                break
            if message["type"] == "pmessage":
                request_id, step, _, fence, _, _, replica_id = message["data"].split("|", 6)
                gateway = message["channel"].removeprefix(every_gateway)
                found.append((gateway, request_id, int(step), int(fence), replica_id))
        return found

    return notices


@pytest.fixture
async def cluster_redis_scheduler(
    cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SchedulerUnderTest]:
    client = patient_client(cluster_url)
    async with stopped_scheduler(client, monkeypatch) as under_test:
        yield under_test
    await client.aclose()


@pytest.fixture
def memory_scheduler() -> SchedulerUnderTest:
    clock = ManualClock(NOON_MS)
    found: list[Notice] = []
    twin = MemoryScheduler(
        clock,
        lambda gateway, grant: found.append(
            (gateway, grant.request_id, grant.step, grant.fence, grant.replica_id)
        ),
    )

    async def advance_ms(by_ms: int) -> None:
        clock.advance(by_ms)

    async def lose_everything() -> None:
        twin.lose_everything()

    async def notices() -> list[Notice]:
        told = list(found)
        found.clear()
        return told

    return SchedulerUnderTest(twin, clock, advance_ms, lose_everything, notices)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("stopped_redis", marks=pytest.mark.contract),
        pytest.param("cluster_redis", marks=pytest.mark.contract),
    ]
)
def scheduler(request: pytest.FixtureRequest) -> SchedulerUnderTest:
    return request.getfixturevalue(f"{request.param}_scheduler")
