"""What only the Redis scheduler has: lost scripts, cluster mode, lost data, a store that hangs or is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cluster import keys
from cluster.clock import ManualClock
from cluster.errors import ConfigError, SchedulerUnavailable
from cluster.scheduler.redis_scheduler import RedisScheduler, connect
from cluster.types import Grant, PoolLoad, Refusal, RefusalReason, ReplicaPhase, Spend, Usage
from deployments.valkey import find_server_binary, start_server, stop_server
from tests.builders import admit_request, ready_replica
from tests.conftest import patient_client

pytestmark = pytest.mark.contract


async def run_all_operations(scheduler: RedisScheduler) -> None:
    """Every script, and every branch of it that names keys: steps, two pools, expiry, missing pools."""
    await scheduler.heartbeat(ready_replica("a", "small"))
    await scheduler.heartbeat(ready_replica("b", "large"))
    await scheduler.heartbeat(ready_replica("c", "large", phase=ReplicaPhase.DRAINING))
    first = await scheduler.admit(admit_request("r0", "small", "large"))
    second = await scheduler.admit(admit_request("r0", "large", step=1))
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    assert await scheduler.renew([first, second], 60_000) == (False, True)
    assert isinstance(await scheduler.admit(admit_request("r1", "small", lease_ttl_ms=1)), Grant)
    assert isinstance(await scheduler.admit(admit_request("r2", "small", lease_ttl_ms=1)), Grant)
    await asyncio.sleep(0.01)
    assert isinstance(await scheduler.admit(admit_request("r3", "small")), Grant)
    assert isinstance(await scheduler.admit(admit_request("r4", "large", lease_ttl_ms=1)), Grant)
    await asyncio.sleep(0.01)
    assert await scheduler.reap(["small", "large"]) >= 1
    assert (await scheduler.settle("r0", ["small"], Usage(10, 10))).first
    await scheduler.deregister(ready_replica("a", "small"))
    assert (await scheduler.settle("r3", ["small", "large"], Usage(10, 10))).first
    assert await scheduler.reap(["small", "large"]) == 0
    assert await scheduler.pool_load("small") == PoolLoad()
    assert (await scheduler.spend_today()).calls == 2


async def test_lost_scripts_are_sent_again(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=9))
    await scheduler.admit(admit_request("r0"))

    await client.script_flush()
    grant = await scheduler.admit(admit_request("r1"))
    await client.script_flush()
    settlement = await scheduler.settle("r1", ["small"], Usage(10, 10))

    assert isinstance(grant, Grant)
    assert settlement.first
    await client.aclose()


async def test_scripts_touch_declared_keys_only(redis_scheduler, valkey_url):
    """Cluster mode only refuses keys of another slot, and all of ours share one: so look at each command."""
    client = patient_client(valkey_url)
    await client.config_resetstat()
    seen: Counter[str] = Counter()
    undeclared = []
    async with client.monitor() as monitor:
        await run_all_operations(redis_scheduler.scheduler)
        await client.echo("the end")
        declared: set[str] = set()
        while True:
            entry = await monitor.next_command()
            words = entry["command"].split()
            if words[0].upper() == "ECHO":
                break
            if words[0].upper() in ("EVALSHA", "EVAL"):
                # The script itself has line breaks, so the number of keys is found behind its end.
                count_at = next(
                    i for i, word in enumerate(words[1:], 1) if word.isdigit() and "{sch}" in words[i + 1]
                )
                declared = set(words[count_at + 1 : count_at + 1 + int(words[count_at])])
            elif entry["client_type"] == "lua" and words[0].upper() != "TIME":
                seen[words[0].upper()] += 1
                if words[1] not in declared:
                    undeclared.append(entry["command"])
    assert undeclared == []
    assert seen["HSET"] > 3, "the monitor must have seen the scripts' commands"
    await client.aclose()


@pytest.fixture
def cluster_url(short_folder):
    """One node that owns no slots yet. On TCP: cluster mode needs a port."""
    with tempfile.TemporaryDirectory(dir=short_folder) as folder:
        port, bus_port = free_ports(2)
        process = subprocess.Popen(
            [
                *(find_server_binary(), "--bind", "127.0.0.1", "--port", str(port), "--save", ""),
                *("--cluster-enabled", "yes", "--cluster-port", str(bus_port), "--dir", folder),
            ],
            stdout=subprocess.DEVNULL,
        )
        yield f"redis://127.0.0.1:{port}"
        stop_server(process)


async def test_all_operations_work_in_cluster_mode(cluster_url):
    client = patient_client(cluster_url)
    await until_cluster_is_ok(client)

    await run_all_operations(RedisScheduler(client, ManualClock()))

    with pytest.raises(ResponseError, match="slot"):  # so the server does look
        await client.eval("#!lua\nreturn redis.call('GET', 'elsewhere')", 1, keys.FENCE)
    await client.aclose()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


async def until_cluster_is_ok(client) -> None:
    deadline = time.monotonic() + 15
    assigned = False
    while time.monotonic() < deadline:
        try:
            if not assigned:
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                assigned = True
            if "cluster_state:ok" in str(await client.execute_command("CLUSTER", "INFO")):
                return
        except RedisConnectionError:  # it is still starting
            pass
        await asyncio.sleep(0.05)
    pytest.fail("the one-node cluster did not get ready within 15 s")


async def test_after_data_loss_the_next_heartbeat_brings_the_replica_back(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1))
    lost = await scheduler.admit(admit_request("r0"))

    await client.flushall()

    assert await scheduler.admit(admit_request("r1")) == Refusal(RefusalReason.NO_REPLICA, 3_000)
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1))
    assert isinstance(await scheduler.admit(admit_request("r1")), Grant)
    assert await scheduler.renew([lost], 60_000) == (False,)
    assert await scheduler.settle("r0", ["small"], Usage(10, 10)) is None
    assert (await scheduler.pool_load("small")).replicas[0].load_requests == 1
    assert await scheduler.spend_today() == Spend()
    await client.aclose()


async def test_a_cancelled_call_leaves_no_reply_behind_for_the_next_one(redis_scheduler):
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1_000))
    for turns in range(12):
        task = asyncio.create_task(scheduler.admit(admit_request(f"r{turns}")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert await scheduler.spend_today() == Spend()


async def test_out_of_memory_refuses_new_requests_but_ends_old_ones(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a"))
    grant = await scheduler.admit(admit_request("r0"))
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(SchedulerUnavailable):
            await scheduler.admit(admit_request("r1"))
        assert await scheduler.renew([grant], 60_000) == (True,)
        assert (await scheduler.settle("r0", ["small"], Usage(10, 10))).first
        assert await scheduler.reap(["small"]) == 0
        await scheduler.deregister(ready_replica("a"))
    finally:
        await client.config_set("maxmemory", 0)
        await client.aclose()


@pytest.fixture
def own_server(short_folder):
    """A server that a test may break: its process and its socket."""
    with tempfile.TemporaryDirectory(dir=short_folder) as folder:
        socket_path = Path(folder) / "v.sock"
        process = start_server(socket_path, Path(folder))
        yield process, socket_path
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        stop_server(process)


def calls_of(scheduler: RedisScheduler) -> dict[str, object]:
    grant = Grant("r", 0, admit_request().candidates[0], "a", "", 1, 0)
    return {
        "admit": lambda: scheduler.admit(admit_request("r")),
        "renew": lambda: scheduler.renew([grant], 1_000),
        "settle": lambda: scheduler.settle("r", ["small"], Usage(1, 1)),
        "reap": lambda: scheduler.reap(["small"]),
        "heartbeat": lambda: scheduler.heartbeat(ready_replica("a")),
        "deregister": lambda: scheduler.deregister(ready_replica("a")),
        "pool_load": lambda: scheduler.pool_load("small"),
        "spend_today": scheduler.spend_today,
        "ping": scheduler.ping,
    }


async def assert_all_calls_fail_within_2_s(scheduler: RedisScheduler) -> None:
    async def fails(name, call) -> None:
        started = time.monotonic()
        with pytest.raises(SchedulerUnavailable) as caught:
            await call()
        assert time.monotonic() - started < 2, name
        assert caught.value.status == 503
        assert caught.value.__cause__ is not None
        assert "/" not in caught.value.message  # no address of ours

    await asyncio.gather(*(fails(name, call) for name, call in calls_of(scheduler).items()))


async def test_a_stopped_server(own_server):
    process, socket_path = own_server
    scheduler = RedisScheduler(connect(str(socket_path)), ManualClock())
    await scheduler.heartbeat(ready_replica("a"))

    stop_server(process)

    await assert_all_calls_fail_within_2_s(scheduler)
    await scheduler.close()


async def test_a_server_that_comes_back_has_kept_its_books(own_server):
    process, socket_path = own_server
    scheduler = RedisScheduler(connect(str(socket_path)), ManualClock())
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1))
    await scheduler.admit(admit_request("r0"))
    stop_server(process)

    restarted = start_server(socket_path, socket_path.parent)
    try:
        answer = await scheduler.admit(admit_request("r1"))
        assert answer == Refusal(RefusalReason.CAPACITY, 1_000)
        assert (await scheduler.settle("r0", ["small"], Usage(10, 10))).first
    finally:
        await scheduler.close()
        stop_server(restarted)


async def test_a_hung_server(own_server):
    process, socket_path = own_server
    scheduler = RedisScheduler(connect(str(socket_path)), ManualClock())
    await scheduler.heartbeat(ready_replica("a"))

    os.kill(process.pid, signal.SIGSTOP)
    await assert_all_calls_fail_within_2_s(scheduler)
    newcomer = RedisScheduler(connect(str(socket_path)), ManualClock())
    await assert_all_calls_fail_within_2_s(newcomer)
    await newcomer.close()
    os.kill(process.pid, signal.SIGCONT)

    await scheduler.heartbeat(ready_replica("a"))
    await scheduler.ping()
    await scheduler.close()


def test_a_url_of_another_kind_is_refused_without_its_password():
    with pytest.raises(ConfigError, match="unix://") as caught:
        connect("postgresql://me:secret@host/0")
    assert "secret" not in str(caught.value)
