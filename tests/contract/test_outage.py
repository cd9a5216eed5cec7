"""The outage table of cluster/scheduler/README.md: what holds while Redis is slow, hung, gone, full or empty.

Every test breaks a real server under a real gateway; what a scripted server is needed for is in
`test_store_errors.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.tenants import Budget, BudgetWindow, RateLimit, key_owner
from tests.fault_matrix import fault
from tests.gateways import FAST, GatewayProcess, GatewayUnderTest, cost_of, running_gateway
from tests.own_valkey import OwnValkey, own_valkey

pytestmark = pytest.mark.contract

Recovered = Callable[[float], None]

SMALL = {"model": "small", "max_tokens": 4}
SLOW = replace(FAST, decode_tokens_per_s=50)
DOLLAR = 1_000_000
TIMEOUT_MS = 200
IMPATIENT = {"redis__timeout_ms": TIMEOUT_MS, "redis__connect_timeout_ms": TIMEOUT_MS}
DECLARED_S = 2 * TIMEOUT_MS / 1000 + 1.0
"""What a call may take longer while Redis is away: connecting, one answer, and a slow test machine."""


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


@asynccontextmanager
async def gateway_on(valkey: OwnValkey, folder: Path, **changes: Any) -> AsyncIterator[GatewayUnderTest]:
    """With one engine per pool, and the snapshot of a first tick."""
    async with running_gateway(
        valkey.url, folder, **({"rebuild_grace_ms": 500} | IMPATIENT | changes)
    ) as gateway:
        await gateway.add_engine("specialist", "s1", cap=64)
        await gateway.add_engine("reserve", "r1", cap=64)
        await gateway.until_ready()
        await until_open(gateway)
        yield gateway


async def until_open(gateway: GatewayUnderTest) -> None:
    """Budgets are usable: the epoch is open."""
    key, _ = gateway.new_key(total(DOLLAR), tenant="probe")
    await until(lambda: gateway.ask(SMALL, key=key), (200,))


async def until(ask: Callable[[], Any], statuses: tuple[int, ...], within_s: float = 10.0) -> tuple[int, Any]:
    async with asyncio.timeout(within_s):
        while (answer := await ask())[0] not in statuses:
            await asyncio.sleep(0.05)
    return answer


async def until_away(gateway: GatewayUnderTest) -> None:
    async with asyncio.timeout(10):
        while not gateway.gateway.context.admission.store_is_away:
            await asyncio.sleep(0.02)


async def until_back(gateway: GatewayUnderTest) -> None:
    async with asyncio.timeout(10):
        while gateway.gateway.context.admission.store_is_away:
            await asyncio.sleep(0.02)


async def live(gateway: GatewayUnderTest) -> int:
    async with gateway.session.get(gateway.url.removesuffix("/v1") + "/livez") as response:
        return response.status


def total(micro_usd: int, *, hard: bool = True) -> Budget:
    return Budget("", BudgetWindow.TOTAL, micro_usd, hard=hard)


async def promises_hold_while_away(gateway: GatewayUnderTest) -> None:
    """Rows 2 to 6: a call without a budget is served, one with a hard budget is refused, each in time."""
    budgeted, _ = gateway.new_key(total(DOLLAR))
    for key, expected in ((None, (200, None)), (budgeted, (503, "budget_unavailable"))):
        started = time.monotonic()
        status, answer = await gateway.ask(SMALL, key=key)
        assert time.monotonic() - started < DECLARED_S
        assert (status, answer if status != 200 else None) == expected
    await until_away(gateway)
    assert await gateway.readiness() == (200, "degraded")
    assert await live(gateway) == 200


async def everything_is_back(gateway: GatewayUnderTest) -> float:
    """Returns how long that took, in s."""
    started = time.monotonic()
    await until_back(gateway)
    await gateway.until_ready()
    await until_open(gateway)
    assert (
        await gateway.until_ready() == "ready"
    )  # a replica whose heartbeat was late comes with the next look
    return time.monotonic() - started


async def spent_as_in_the_ledger(gateway: GatewayUnderTest, key_id: str) -> int:
    """What Redis and the ledger agree on, once nothing is held any more."""
    sums = (key_owner(key_id), "total")
    async with asyncio.timeout(10):
        while True:
            await gateway.until_settled()
            spent, held = await gateway.budget(*sums)
            if held == 0 and spent == gateway.ledger.spent([sums])[sums]:
                return spent
            await asyncio.sleep(0.1)


@fault(
    "Redis hangs (SIGSTOP), then goes on",
    "calls without a budget are served and those with a hard budget refused, each within the timeout; "
    "readiness degraded, liveness up",
)
async def test_hung(valkey: OwnValkey, tmp_path: Path, recovered: Recovered) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        valkey.hang()
        await promises_hold_while_away(gateway)
        valkey.go_on()
        recovered(await everything_is_back(gateway))


@fault(
    "Redis answers after seconds (CLIENT PAUSE)",
    "as when it hangs",
)
async def test_slow(valkey: OwnValkey, tmp_path: Path, recovered: Recovered) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        valkey.command("CLIENT", "PAUSE", 4000, "ALL")
        await promises_hold_while_away(gateway)
        recovered(await everything_is_back(gateway))


@fault(
    "Redis is killed and started again with its data",
    "as when it hangs; nothing spent is forgotten or counted twice",
)
async def test_killed_and_started_again_with_its_data(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        key, key_id = gateway.new_key(total(DOLLAR))
        assert (await gateway.ask(SMALL, key=key))[0] == 200
        spent = await spent_as_in_the_ledger(gateway, key_id)
        await asyncio.sleep(1.1)  # appendfsync everysec
        valkey.kill()
        await promises_hold_while_away(gateway)
        valkey.start()
        recovered(await everything_is_back(gateway))

        assert await spent_as_in_the_ledger(gateway, key_id) == spent


@fault(
    "Redis is killed and started again empty",
    "budgets closed until rebuilt from the ledger",
)
async def test_killed_and_started_again_empty(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        key, key_id = gateway.new_key(total(DOLLAR))
        assert (await gateway.ask(SMALL, key=key))[0] == 200
        spent = await spent_as_in_the_ledger(gateway, key_id)
        valkey.kill()
        valkey.lose_data()
        await promises_hold_while_away(gateway)
        valkey.start()
        recovered(await everything_is_back(gateway))
        await until(lambda: gateway.ask(SMALL, key=key), (200,))

        # The second call saw the first one's spend, which only the ledger knew.
        assert await spent_as_in_the_ledger(gateway, key_id) > spent


@fault(
    "FLUSHALL under running calls",
    "leases and holds of running calls come back; budgets closed meanwhile",
)
async def test_flushed_under_running_calls(valkey: OwnValkey, tmp_path: Path) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        await gateway.replace_engine("s1", "s2", cap=2, profile=SLOW)
        key, key_id = gateway.new_key(total(DOLLAR))
        running = [asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 200}, key=key)) for _ in range(2)]
        await gateway.until_leases(2)
        held = (await gateway.budget(key_owner(key_id)))[1]

        valkey.command("FLUSHALL")

        # Closed until the holds of the running calls are back, then they count again.
        assert (await gateway.ask(SMALL, key=key))[1] == "budget_unavailable"
        async with asyncio.timeout(5):
            while (await gateway.budget(key_owner(key_id)))[1] != held:
                await asyncio.sleep(0.02)
        (replica,) = (await gateway.scheduler.pool_load("specialist")).replicas
        assert (await gateway.scheduler.pool_load("specialist")).leases == 2
        assert replica.load_requests in {0, 2}  # 0 until its next heartbeat
        assert [status for status, _ in await asyncio.gather(*running)] == [200, 200]
        assert await spent_as_in_the_ledger(gateway, key_id) > 0
        await gateway.until_no_lease()


@fault(
    "failover to a replica that lacks the last settles",
    "spend is raised to the ledger, nothing counted twice",
)
async def test_failed_over_with_loss(valkey: OwnValkey, tmp_path: Path, recovered: Recovered) -> None:
    """The replica that took over had stopped following: it lacks the last settles."""
    valkey.start("two", use=False)
    valkey.command("REPLICAOF", "NO", "ONE", name="two")
    async with gateway_on(valkey, tmp_path) as gateway:
        key, key_id = gateway.new_key(total(DOLLAR))
        assert (await gateway.ask(SMALL, key=key))[0] == 200
        before = await spent_as_in_the_ledger(gateway, key_id)
        copied = {name: valkey.client().dump(name) for name in valkey.client().keys("*")}
        for name, value in copied.items():
            valkey.client("two").restore(name, 0, value)
        assert (await gateway.ask(SMALL, key=key))[0] == 200
        after = await spent_as_in_the_ledger(gateway, key_id)
        assert after > before

        valkey.kill("one")
        valkey.use("two")
        recovered(await everything_is_back(gateway))

        assert await spent_as_in_the_ledger(gateway, key_id) == after


@fault(
    "Redis answers READONLY",
    "as when it hangs",
)
async def test_readonly(valkey: OwnValkey, tmp_path: Path, recovered: Recovered) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        valkey.command("REPLICAOF", "127.0.0.1", "1")
        await promises_hold_while_away(gateway)
        valkey.command("REPLICAOF", "NO", "ONE")
        recovered(await everything_is_back(gateway))


@fault(
    "Redis answers OOM (maxmemory 1)",
    "running calls settle, slots are freed, new calls as when it hangs",
)
async def test_out_of_memory_still_frees_slots_and_counts_money(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        await gateway.replace_engine("s1", "s2", cap=2, profile=SLOW)
        await asyncio.sleep(1.1)
        key, key_id = gateway.new_key(total(DOLLAR))
        running = asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 60}, key=key))
        await gateway.until_leases(1)
        valkey.command("CONFIG", "SET", "maxmemory", "1")

        assert (await running)[0] == 200
        assert await spent_as_in_the_ledger(gateway, key_id) > 0
        await gateway.until_no_lease()
        assert (await gateway.ask(SMALL, key=key))[1] == "budget_unavailable"
        assert (await gateway.ask(SMALL))[0] == 200

        valkey.command("CONFIG", "SET", "maxmemory", "0")
        recovered(await everything_is_back(gateway))


@fault(
    "SCRIPT FLUSH",
    "nobody notices",
)
async def test_script_cache_flushed(valkey: OwnValkey, tmp_path: Path) -> None:
    async with gateway_on(valkey, tmp_path, redis__timeout_ms=5000) as gateway:
        for _ in range(5):
            valkey.command("SCRIPT", "FLUSH")
            assert (await gateway.ask(SMALL))[0] == 200
        assert gateway.gateway.context.admission.decisions_without_redis == 0


@fault(
    "all connections are cut (CLIENT KILL)",
    "nobody notices",
)
async def test_connections_cut(valkey: OwnValkey, tmp_path: Path) -> None:
    async with gateway_on(valkey, tmp_path, redis__timeout_ms=5000) as gateway:
        for _ in range(5):
            valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert (await gateway.ask(SMALL))[0] == 200
        assert gateway.gateway.context.admission.decisions_without_redis == 0


@fault(
    "Redis is absent when the gateway starts",
    "its budgets are shared from the moment it appears",
)
async def test_absent_at_start(valkey: OwnValkey, tmp_path: Path) -> None:
    """LiteLLM #42653: probed once at start, budgets per process for life."""
    valkey.kill()
    async with running_gateway(valkey.url, tmp_path, **IMPATIENT) as gateway:
        key, key_id = gateway.new_key(total(DOLLAR))
        await until_away(gateway)
        assert (await gateway.readiness())[0] == 503
        assert await live(gateway) == 200

        valkey.start()
        await gateway.add_engine("specialist", "s1")
        await gateway.until_ready()
        await until(lambda: gateway.ask(SMALL, key=key), (200,))

        assert await spent_as_in_the_ledger(gateway, key_id) > 0


@fault(
    "Redis hangs and every key has a hard budget",
    "not ready, but alive",
)
async def test_not_ready_when_every_key_has_a_hard_budget(valkey: OwnValkey, tmp_path: Path) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        for record in gateway.keys.list_keys():
            if not record.budgets:
                gateway.keys.revoke(record.key_id)
        valkey.hang()
        await until_away(gateway)

        assert (await gateway.readiness())[0] == 503
        assert await live(gateway) == 200


@fault(
    "Redis hangs, soft budget",
    "calls within the declared allowance, counted afterwards",
)
async def test_soft_budgets_have_an_allowance(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path, scheduler__soft_allowance_usd=0.0003) as gateway:
        key, key_id = gateway.new_key(total(DOLLAR, hard=False))
        valkey.hang()
        answers = [await gateway.ask(SMALL, key=key) for _ in range(12)]
        served = sum(status == 200 for status, _ in answers)
        assert 0 < served < 12
        assert {answer for status, answer in answers if status != 200} == {"budget_unavailable"}

        valkey.go_on()
        recovered(await everything_is_back(gateway))
        assert (await gateway.ask(SMALL, key=key))[0] == 200  # its spend is raised to the ledger's
        assert await spent_as_in_the_ledger(gateway, key_id) > 0


@fault(
    "Redis hangs, rate limits",
    "each gateway grants its share, all together never more than the limit",
)
async def test_rates_fall_to_the_local_share(valkey: OwnValkey, tmp_path: Path) -> None:
    async with gateway_on(valkey, tmp_path) as one, gateway_on(valkey, tmp_path) as two:
        key, _ = one.new_key(requests=RateLimit(per_minute=8, burst=8))
        await asyncio.sleep(1.2)  # each has seen the other
        valkey.hang()
        await until_away(one)
        await until_away(two)

        answers = [await each.ask(SMALL, key=key) for each in (one, two) * 8]

        assert sum(status == 200 for status, _ in answers) == 8
        assert {answer for status, answer in answers if status != 200} == {"rate_limit_exceeded"}


@fault(
    "calls end while Redis hangs",
    "their settles are replayed exactly once",
)
async def test_settles_of_an_outage_are_replayed_once(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        await gateway.replace_engine("s1", "s2", cap=8, profile=SLOW)
        await asyncio.sleep(1.1)
        key, key_id = gateway.new_key(total(DOLLAR))
        running = [asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 60}, key=key)) for _ in range(4)]
        await gateway.until_leases(4)
        valkey.hang()
        answers = await asyncio.gather(*running)
        assert [status for status, _ in answers] == [200] * 4
        assert (await gateway.ask(SMALL, key=key))[1] == "budget_unavailable"
        valkey.go_on()
        recovered(await everything_is_back(gateway))

        expected = sum(cost_of(answer) for _, answer in answers)
        assert await spent_as_in_the_ledger(gateway, key_id) == expected
        await gateway.until_no_lease()


@fault(
    "Redis hangs while calls wait in its queue",
    "their money is held, so they run as soon as this gateway has a slot, and are paid once",
)
async def test_waiters_go_on_without_the_queue(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    async with gateway_on(valkey, tmp_path) as gateway:
        await gateway.replace_engine("s1", "s2", cap=1, profile=SLOW)
        key, key_id = gateway.new_key(total(DOLLAR))
        first = asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 100}, key=key))
        await gateway.until_leases(1)
        second = asyncio.create_task(gateway.ask(SMALL, key=key))
        async with asyncio.timeout(10):
            while not sum((await gateway.scheduler.pool_load("specialist")).waiting):
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)  # the snapshot knows s2
        valkey.hang()

        answers = await asyncio.gather(first, second)
        assert [status for status, _ in answers] == [200, 200]
        valkey.go_on()
        recovered(await everything_is_back(gateway))
        paid = sum(cost_of(answer) for _, answer in answers)
        assert await spent_as_in_the_ledger(gateway, key_id) == paid
        await gateway.until_no_lease()


@fault(
    "Redis is gone under load",
    "one log line when it goes, one when it comes",
)
async def test_one_log_line_per_transition(
    valkey: OwnValkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LiteLLM #40672: one traceback per request pinned a core."""
    async with gateway_on(valkey, tmp_path) as gateway:
        with caplog.at_level(logging.INFO):
            valkey.kill()
            await until_away(gateway)
            before = gateway.gateway.context.admission.decisions_without_redis
            for _ in range(10):
                await asyncio.gather(*(gateway.ask(SMALL) for _ in range(30)))
            valkey.start()
            await until_back(gateway)
        decided = gateway.gateway.context.admission.decisions_without_redis - before
        lines = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]

    assert decided >= 300
    assert [line.split(" (")[0] for line in lines] == ["Redis does not answer", "Redis answers again"], lines


@fault(
    "a gateway dies with running and waiting calls",
    "another one reaps leases, places and holds",
)
async def test_a_gateway_that_dies_leaves_nothing_behind(
    valkey: OwnValkey, tmp_path: Path, recovered: Recovered
) -> None:
    """SIGKILL of its process with one call running and two waiting. Another one reaps them: charged if it
    had been sent to an engine for some seconds, refunded if it waited."""
    async with gateway_on(valkey, tmp_path) as survivor:
        key, key_id = survivor.new_key(total(DOLLAR))
        engine = await survivor.replace_engine("s1", "s2", cap=1, profile=SLOW)
        doomed = GatewayProcess(valkey.url, tmp_path)
        try:
            async with asyncio.timeout(20):
                while await _status(survivor, doomed.url.removesuffix("/v1") + "/readyz") != 200:
                    await asyncio.sleep(0.1)
            calls = [
                asyncio.create_task(_post(survivor, doomed.url, SMALL | {"max_tokens": 200}, key))
                for _ in range(3)
            ]
            async with asyncio.timeout(5):
                while (await survivor.scheduler.pool_load("specialist")).waiting != (0, 2, 0):
                    await asyncio.sleep(0.02)
            assert (await survivor.budget(key_owner(key_id)))[1] > 0
        finally:
            doomed.kill()
        started = time.monotonic()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends)
        await engine.until_idle()

        async with asyncio.timeout(2 * 15):
            while (await survivor.budget(key_owner(key_id)))[1] or await survivor.leases():
                await asyncio.sleep(0.1)
        recovered(time.monotonic() - started)
        assert (await survivor.scheduler.pool_load("specialist")).waiting == (0, 0, 0)
        assert (await survivor.scheduler.spend_today()).lost_calls == 3
        await spent_as_in_the_ledger(survivor, key_id)


async def _status(gateway: GatewayUnderTest, url: str) -> int:
    try:
        async with gateway.session.get(url) as response:
            return response.status
    except aiohttp.ClientError:
        return 0


async def _post(gateway: GatewayUnderTest, url: str, body: dict[str, Any], key: str) -> int:
    messages = [{"role": "user", "content": "hi there, how are you?"}]
    headers = {"authorization": f"Bearer {key}"}
    async with gateway.session.post(
        url + "/chat/completions", json=body | {"messages": messages}, headers=headers
    ) as response:
        await response.read()
        return response.status
