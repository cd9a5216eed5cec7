"""What only the Redis scheduler has: lost scripts, cluster mode, lost data, a store that hangs or is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from cluster import keys
from cluster.clock import ManualClock
from cluster.errors import ConfigError, SchedulerUnavailable
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import GrantNotice, RedisScheduler
from cluster.scheduler.scheduler import STATS_TTL_MS
from cluster.types import (
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Grant,
    HeldLease,
    Placement,
    PoolLoad,
    RateCharge,
    Refusal,
    RefusalReason,
    ReplicaPhase,
    SettleRequest,
    Spend,
    Waiting,
)
from deployments.valkey import start_server, stop_server
from tests.builders import PATIENT, admit_request, candidate, ready_replica, settle_request
from tests.conftest import patient_client
from tests.scheduler_calls import cancel, grant_of, keep, reaped, refusal_of, settle, waiting_of

pytestmark = pytest.mark.contract


LEGAL = (("legal@1", "loaded"),)
LINE = BudgetLine("tenant:acme", "20261122", 10**9, ttl_ms=3 * 86_400_000)
TOTAL = BudgetLine("key:k1", "total", 10**9)


def rich_request(request_id: str, *tiers: str, **changes: Any) -> AdmitRequest:
    """One that names every kind of key."""
    tiers = tiers or ("small",)
    fields: dict[str, Any] = {
        "candidates": tuple(candidate(tier, adapter="legal@1") for tier in tiers),
        "placements": tuple(Placement(cold_nano_usd=5, affine_replica="a") for _ in tiers),
        "budgets": (LINE, TOTAL),
        "hold_micro_usd": 100,
        "rates": (RateCharge("requests:k1", 10**8, 10**10), RateCharge("tokens:k1", 2 * 10**8, 10**10)),
        "gateway": "g1",
        "note": "a note",
    }
    return admit_request(request_id, **(fields | changes))


def rich_settle(request: AdmitRequest, cost: int = 50, **changes: Any) -> SettleRequest:
    fields: dict[str, Any] = {
        "budgets": tuple((line.owner, line.window) for line in request.budgets),
        "rates": tuple((rate.bucket, 500) for rate in request.rates),
    }
    return settle_request(request.request_id, cost, **(fields | changes))


async def run_all_operations(scheduler: RedisScheduler) -> None:
    """Every script, and every branch of it that names keys."""
    await scheduler.rebuild([(LINE, 10), (TOTAL, 20)], grace_ms=0)
    await scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1, adapters=LEGAL))
    await scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
    await scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1, adapters=LEGAL))
    await scheduler.heartbeat(ready_replica("c", "large", phase=ReplicaPhase.DRAINING))
    # Steps: a draft with somebody behind it, an escalation whose call names only its own pool.
    draft = rich_request("r0", "small", "large")
    first = await scheduler.admit(draft)
    assert isinstance(first, Grant)
    behind = await scheduler.admit(rich_request("r1", queue=PATIENT))
    assert isinstance(behind, Waiting)
    second = await scheduler.admit(rich_request("r0", "large", step=1))
    assert isinstance(second, Grant)
    assert isinstance(await scheduler.admit(rich_request("r0", "large", step=1)), Grant)
    assert isinstance(
        await scheduler.admit(rich_request("r9", queue=PATIENT, hold_micro_usd=10**10)), Refusal
    )
    held = [HeldLease(first), HeldLease(second)]
    assert (await scheduler.renew("g1", held, 60_000)).kept == (False, True)
    (granted,) = await scheduler.poll([behind], 1_000)
    assert isinstance(granted, Grant)
    assert isinstance(await scheduler.admit(rich_request("r1", queue=PATIENT)), Grant)
    # Waiters: one is settled from the queue, one escalates out of it, one is cancelled, one is lost.
    for name in ("r2", "r3", "r4"):
        assert isinstance(await scheduler.admit(rich_request(name, queue=PATIENT)), Waiting)
    lost = rich_request("r5", queue=replace(PATIENT, ticket_ttl_ms=1))
    assert isinstance(await scheduler.admit(lost), Waiting)
    assert isinstance(await scheduler.admit(rich_request("r3", "large", step=1, queue=PATIENT)), Waiting)
    assert (await scheduler.settle(rich_settle(rich_request("r4"), 0, cancelled=True))).first
    await asyncio.sleep(0.01)
    assert [each.request_id for each in await scheduler.reap(["small", "large"])] == ["r5"]
    assert (await scheduler.settle(rich_settle(rich_request("r1"), pools=()))).first  # r2 gets its slot
    assert (await scheduler.settle(rich_settle(draft, pools=("small",)))).first  # r3 gets its slot
    # Leases that run out, and one whose gateway comes back.
    assert (await scheduler.settle(rich_settle(rich_request("r2")))).first
    short = await scheduler.admit(rich_request("r6", lease_ttl_ms=1))
    assert isinstance(short, Grant)
    await scheduler.renew("g2", [HeldLease(short)], 1)
    await asyncio.sleep(0.01)
    assert [each.charge_micro_usd for each in await scheduler.reap(["small", "large"])] == [100]
    assert (await scheduler.settle(rich_settle(rich_request("r6")))).first
    # A call that the store does not know any more.
    again = rich_request("r7")
    assert await scheduler.reregister(again, HeldLease(replace(short, request_id="r7")))
    assert await scheduler.reregister(again, HeldLease(replace(short, request_id="r7"))) is None
    assert (await scheduler.settle(rich_settle(again))).first
    await scheduler.deregister(ready_replica("a", "small"))
    await scheduler.deregister(ready_replica("c", "large"))
    assert await scheduler.reap(["small", "large"]) == ()
    assert await scheduler.pool_load("small") == PoolLoad()
    assert (await scheduler.spend_today()).calls == 5
    assert await scheduler.budget_states([(LINE.owner, LINE.window)]) == (BudgetState(10 + 5 * 50, 100),)


async def test_lost_scripts_are_sent_again(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=9))
    await scheduler.admit(admit_request("r0"))

    await client.script_flush()
    request = admit_request("r1")
    await grant_of(scheduler, request)
    await client.script_flush()

    assert (await settle(scheduler, request)).first
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
            command = words[0].upper()
            if command == "ECHO":
                break
            if command in ("EVALSHA", "EVAL"):
                # The script itself has line breaks, so the number of keys is found behind its end.
                count_at = next(
                    i for i, word in enumerate(words[1:], 1) if word.isdigit() and "{sch}" in words[i + 1]
                )
                declared = set(words[count_at + 1 : count_at + 1 + int(words[count_at])])
            elif entry["client_type"] == "lua" and command not in ("TIME", "PUBLISH", "INFO"):
                seen[command] += 1
                touched = words[1:] if command in ("MGET", "DEL") else words[1:2]
                if not declared.issuperset(touched):
                    undeclared.append(entry["command"])
    assert undeclared == []
    assert seen["HSET"] > 3, "the monitor must have seen the scripts' commands"
    await client.aclose()


async def test_all_operations_work_in_cluster_mode(cluster_url):
    """By the server's own clock; the scenarios of the contract run there as well."""
    client = patient_client(cluster_url)
    await client.flushall()

    await run_all_operations(RedisScheduler(client, ManualClock()))

    with pytest.raises(ResponseError, match="slot"):  # so the server does look
        await client.eval("#!lua\nreturn redis.call('GET', 'elsewhere')", 1, keys.FENCE)
    await client.aclose()


async def contents(client: Redis) -> dict[str, object]:
    """Every key but the event stream, whatever its encoding."""
    found: dict[str, object] = {}
    for name in await client.keys("*"):
        match await client.type(name):
            case "string":
                found[name] = await client.get(name)
            case "hash":
                found[name] = await client.hgetall(name)
            case "zset":
                found[name] = await client.zrange(name, 0, -1, withscores=True)
            case "set":
                found[name] = await client.smembers(name)
            case "stream":
                found[name] = await client.xlen(name)
    return found


async def test_every_key_has_the_tag_and_most_have_an_end(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    await run_all_operations(redis_scheduler.scheduler)

    names = await client.keys("*")
    endless = {name for name in names if await client.pttl(name) == -1}

    assert all(name.startswith("{sch}:") for name in names)
    # What is as large as the fleet, and what nobody may forget.
    assert endless == {
        keys.FENCE,
        keys.EPOCH,
        keys.GATEWAYS,
        keys.EVENTS,
        keys.budget(TOTAL.owner, TOTAL.window),
        *(keys.load(pool) for pool in ("small", "large")),
        *(keys.leases("large"), keys.lease_details("large")),
        *(keys.replicas("large"), keys.directory("large"), keys.adapter_holders("large", "legal@1")),
    }
    day_ms = 86_400_000
    assert 2.9 * day_ms < await client.pttl(keys.budget(LINE.owner, LINE.window)) <= LINE.ttl_ms
    assert 0.9 * day_ms < await client.pttl(keys.reservation("r0")) <= day_ms
    assert 0 < await client.pttl(keys.replica("b")) <= 3_000
    await client.aclose()


async def test_an_idle_pool_leaves_no_lease_ticket_or_bucket_behind(stopped_redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = stopped_redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1, adapters=LEGAL))
    requests = [rich_request(f"r{i}", queue=PATIENT) for i in range(4)]
    for request in requests:
        await scheduler.admit(request)
    for request in requests[:3]:
        await scheduler.settle(rich_settle(request))
    await cancel(scheduler, requests[3])
    await stopped_redis_scheduler.advance_ms(1_000_000)
    await scheduler.reap(["small"])

    kinds = {name.split(":")[1] for name in await client.keys("*")}

    # What a pool has learned, the money, the calls to remember; and the test's own clock.
    assert kinds == {"fence", "ev", "spend", "load", "bud", "resv", "test"}
    assert (await client.hgetall(keys.load("small"))).keys() == {"#service_us"}
    await client.aclose()


REFUSED = {
    RefusalReason.NO_REPLICA: rich_request("r", exclude_replicas=("a",)),
    RefusalReason.CAPACITY: rich_request("r"),
    RefusalReason.QUEUE_FULL: rich_request("r", queue=replace(PATIENT, longest_queue=1)),
    RefusalReason.WAIT: rich_request("r", queue=PATIENT, deadline_ms=1),
    RefusalReason.RATE: rich_request("r", rates=(RateCharge("requests:k1", 10**9, 10**9),)),
    RefusalReason.TOO_LARGE: rich_request("r", rates=(RateCharge("tokens:k1", 2, 1),)),
    RefusalReason.BUDGET: rich_request("r", hold_micro_usd=10**9),
    RefusalReason.REBUILDING: rich_request("r", checked=True),
    RefusalReason.ENDED: rich_request("ended"),
}
"""With a waiter before it, and something in every budget and bucket."""

REFUSED_STEPS = [
    rich_request("running", step=1, exclude_replicas=("a",)),
    rich_request("running", step=1),
    rich_request("running", "large", step=1),
    rich_request("running", step=1, queue=replace(PATIENT, longest_queue=1)),
    rich_request("running", "small", "large", step=1, queue=PATIENT, deadline_ms=1),
    rich_request("waiting", step=1),
    rich_request("waiting", step=1, queue=PATIENT, deadline_ms=1),
    rich_request("waiting", "large", step=1),
]


@pytest.fixture
async def busy_server(stopped_redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = stopped_redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1, adapters=LEGAL))
    ended = rich_request("ended")
    await grant_of(scheduler, ended)
    await stopped_redis_scheduler.advance_ms(1_000)
    await scheduler.settle(rich_settle(ended))
    await grant_of(scheduler, rich_request("running"))
    await waiting_of(scheduler, rich_request("waiting", queue=PATIENT))
    yield scheduler, client
    await client.aclose()


@pytest.mark.parametrize(
    ("reason", "request_"),
    [*REFUSED.items(), *((None, request) for request in REFUSED_STEPS)],
    ids=[*REFUSED, *(f"step{i}" for i in range(len(REFUSED_STEPS)))],
)
async def test_a_refusal_writes_nothing_but_its_counter(busy_server, reason, request_):
    scheduler, client = busy_server
    before = await contents(client)

    refusal = await scheduler.admit(request_)

    assert isinstance(refusal, Refusal)
    assert reason in (None, refusal.reason)
    after = await contents(client)
    counted = after.pop(keys.stats("20261122"))
    spend = before.pop(keys.stats("20261122"))
    assert after == before
    assert counted == spend | {f"refused:{refusal.reason}": "1"}


async def test_the_counters_of_a_day_are_not_kept_alive_by_sweeps(redis_scheduler, valkey_url):
    scheduler = redis_scheduler.scheduler
    await scheduler.admit(admit_request("refused"))
    client = patient_client(valkey_url)
    (counters,) = await client.keys(keys.stats("*"))

    await scheduler.reap(["small"])
    left_ms = await client.pttl(counters)
    await asyncio.sleep(0.01)
    await scheduler.reap(["small"])

    assert 0 < await client.pttl(counters) < left_ms <= STATS_TTL_MS
    await client.aclose()


@pytest.fixture
async def told(redis_scheduler, valkey_url):
    """The grants that gateway g1 hears of."""
    heard: asyncio.Queue[GrantNotice] = asyncio.Queue()
    listener = asyncio.create_task(redis_scheduler.scheduler.listen_for_grants("g1", heard.put_nowait))
    client = patient_client(valkey_url)
    while await client.publish(keys.grants_channel("g1"), "r|0|0|1|1||x") < 2:  # the fixture listens as well
        await asyncio.sleep(0.01)
    await heard.get()
    yield heard
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    await client.aclose()


async def test_a_grant_from_the_queue_is_told_to_its_gateway(redis_scheduler, told):
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a|1", address="http://a", max_concurrency=1))
    blocker = admit_request("blocker")
    await grant_of(scheduler, blocker)
    mine = await waiting_of(scheduler, rich_request("mine", queue=PATIENT, step=3))
    await waiting_of(scheduler, rich_request("other", queue=PATIENT, gateway="g2"))

    await settle(scheduler, blocker)
    notice = await asyncio.wait_for(told.get(), 10)
    (grant,) = await scheduler.poll([mine], 1_000)
    await scheduler.settle(rich_settle(rich_request("mine")))

    assert notice.grant_of(mine.candidate) == grant
    assert (notice.request_id, notice.step, notice.replica_id) == ("mine", 3, "a|1")
    assert told.empty()


async def test_after_data_loss_the_next_heartbeat_brings_the_replica_back(redis_scheduler):
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1, adapters=LEGAL))
    lost = await grant_of(scheduler, admit_request("r0"))

    await redis_scheduler.lose_everything()

    assert await scheduler.admit(admit_request("r1")) == Refusal(RefusalReason.NO_REPLICA, 3_000)
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1, adapters=LEGAL))
    later = await grant_of(scheduler, admit_request("r1"))
    assert later.fence > lost.fence
    assert await keep(scheduler, lost) == [False]
    assert await scheduler.settle(settle_request("r0")) is None
    assert (await scheduler.pool_load("small")).replicas[0].load_requests == 1
    assert await scheduler.spend_today() == Spend(refused=(("no_replica", 1),))


async def test_a_failover_that_loses_the_last_grants_gives_out_no_fence_twice(redis_scheduler, valkey_url):
    client = patient_client(valkey_url)
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=99))
    before = await client.get(keys.FENCE) or 1
    given = [(await grant_of(scheduler, admit_request(f"r{i}"))).fence for i in range(50)]
    await asyncio.sleep(0.01)

    await client.set(keys.FENCE, before)

    assert (await grant_of(scheduler, admit_request("next"))).fence > max(given)
    await client.aclose()


async def test_leases_and_replicas_die_by_the_clock_of_the_server(redis_scheduler):
    scheduler = redis_scheduler.scheduler
    await scheduler.heartbeat(ready_replica("a", max_concurrency=1))
    await grant_of(scheduler, admit_request("r0", lease_ttl_ms=100, rates=(RateCharge("k", 10**6, 10**6),)))
    waiting = rich_request("r1", queue=PATIENT, deadline_ms=3_000)
    await waiting_of(scheduler, waiting)
    refusal = await refusal_of(scheduler, admit_request("r2", rates=(RateCharge("k", 1, 10**6),)))
    assert refusal.retry_after_ms > 500

    await redis_scheduler.advance_ms(150)
    assert await reaped(scheduler) == {"r0": 0}
    assert (await scheduler.pool_load("small")).waiting == (0, 0, 0)
    await redis_scheduler.advance_ms(3_000)

    assert (await scheduler.pool_load("small")).replicas == ()
    assert await scheduler.admit(admit_request("r3")) == Refusal(RefusalReason.NO_REPLICA, 3_000)


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
    await scheduler.rebuild([], grace_ms=0)
    await scheduler.heartbeat(ready_replica("a", max_concurrency=2, adapters=LEGAL))
    requests = [rich_request(f"r{i}", queue=PATIENT, lease_ttl_ms=60_000 if i else 1) for i in range(5)]
    grants = [await grant_of(scheduler, request) for request in requests[:2]]
    waiting = [await waiting_of(scheduler, request) for request in requests[2:]]
    await asyncio.sleep(0.01)
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(SchedulerUnavailable):
            await scheduler.admit(admit_request("new"))
        assert await keep(scheduler, grants[1]) == [True]
        assert await reaped(scheduler) == {"r0": 0}
        answers = await scheduler.poll(waiting, 1_000)
        assert [type(answer) for answer in answers] == [Grant, Waiting, Waiting]
        assert (await scheduler.settle(rich_settle(requests[1]))).first
        assert (await scheduler.settle(rich_settle(requests[3], 0, cancelled=True))).first
        assert isinstance((await scheduler.poll(waiting, 1_000))[2], Grant)
        assert (await scheduler.rebuild([(LINE, 60)])).startswith("open|")
        assert await scheduler.reregister(
            rich_request("back"), HeldLease(replace(grants[1], request_id="back"))
        )
        await scheduler.deregister(ready_replica("a"))
    finally:
        await client.config_set("maxmemory", 0)
        await client.aclose()


@pytest.fixture
def own_server(short_folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server that a test may break: its process and its socket."""
    with tempfile.TemporaryDirectory(dir=short_folder) as folder:
        socket_path = Path(folder) / "v.sock"
        process = start_server(socket_path, Path(folder))
        yield process, socket_path
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        stop_server(process)


def calls_of(scheduler: RedisScheduler) -> dict[str, Any]:
    lease = HeldLease(Grant("r", 0, candidate(), "a", "", 1, 0))
    return {
        "admit": lambda: scheduler.admit(rich_request("r")),
        "poll": lambda: scheduler.poll([Waiting("r", 0, candidate(), 0, 0)], 1_000),
        "renew": lambda: scheduler.renew("g1", [lease], 1_000),
        "settle": lambda: scheduler.settle(settle_request("r")),
        "reap": lambda: scheduler.reap(["small"]),
        "heartbeat": lambda: scheduler.heartbeat(ready_replica("a")),
        "deregister": lambda: scheduler.deregister(ready_replica("a")),
        "rebuild": lambda: scheduler.rebuild([(LINE, 1)]),
        "reregister": lambda: scheduler.reregister(rich_request("r"), lease),
        "pool_load": lambda: scheduler.pool_load("small"),
        "budget_states": lambda: scheduler.budget_states([("tenant:acme", "20261122")]),
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
        assert (await settle(scheduler, admit_request("r0"))).first
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
