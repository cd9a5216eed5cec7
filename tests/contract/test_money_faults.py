"""Money under fire: many workers, one budget, and a store, a database or gateways that fail meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import StoreUnavailable
from cluster.tenants import Budget, BudgetWindow, key_owner
from deployments.gateway.booking import Booked
from tests.fault_matrix import fault
from tests.gateways import FAST, GatewayUnderTest, cost_of, running_gateway
from tests.own_valkey import OwnValkey, own_valkey
from tests.postgres import RunningPostgres

pytestmark = pytest.mark.contract

SMALL = {"model": "small", "max_tokens": 16}
QUICK = replace(FAST, decode_tokens_per_s=200)
TIMEOUT_MS = 200
LEASE_TTL_S = 15.0
WORKERS = 50
SECONDS = float(os.environ.get("SPRAT_CHAOS_SECONDS", "8"))


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


class Workers:
    """Ask without a pause until told to stop; remember what was paid and the longest wait."""

    def __init__(self, gateways: list[GatewayUnderTest], key: str) -> None:
        self.paid_micro_usd = 0
        self.answers: dict[str, int] = {}
        self.longest_s = 0.0
        self._stop = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._ask(gateways[number % len(gateways)], key)) for number in range(WORKERS)
        ]

    async def _ask(self, gateway: GatewayUnderTest, key: str) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            status, answer = await gateway.ask(SMALL, key=key)
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            outcome = str(status) if status == 200 else str(answer)
            self.answers[outcome] = self.answers.get(outcome, 0) + 1
            if status == 200:
                self.paid_micro_usd += cost_of(answer)
            else:
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def agreed(gateway: GatewayUnderTest, owner: str, within_s: float) -> tuple[int, float]:
    """What Redis and the ledger agree on with nothing held and nothing leased, and when they did (s)."""
    sums = (owner, "total")
    started = time.monotonic()
    state: Any = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                await gateway.until_settled(within_s)
                spent, held = await gateway.budget(*sums)
                ledger = gateway.ledger.spent([sums])[sums]
                state = (spent, held, ledger, await gateway.leases())
                if state == (ledger, 0, ledger, 0):
                    return ledger, time.monotonic() - started
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"spent, held, in the ledger, leases: {state}") from None


@fault(
    "50 workers and two gateways on one budget while Redis hangs, is killed and comes back",
    "spend never exceeds the budget, nothing is counted twice, no lease is left after 2 TTLs, no call hangs",
)
@pytest.mark.timeout(240)
async def test_one_budget_under_chaos(
    valkey: OwnValkey, tmp_path: Path, recovered: Callable[[float], None]
) -> None:
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(
                running_gateway(
                    valkey.url,
                    tmp_path,
                    redis__timeout_ms=TIMEOUT_MS,
                    redis__connect_timeout_ms=TIMEOUT_MS,
                    rebuild_grace_ms=1500,
                )
            )
            for _ in range(2)
        ]
        first = gateways[0]
        for number in range(2):
            await first.add_engine("specialist", f"s{number}", cap=16, profile=QUICK)
        await asyncio.gather(*(gateway.until_ready() for gateway in gateways))
        # Enough for a part of what the workers ask for: the limit is met while things fail.
        limit = int(1200 * SECONDS)
        key, key_id = first.new_key(Budget("", BudgetWindow.TOTAL, limit))
        owner = key_owner(key_id)

        workers = Workers(gateways, key)
        await asyncio.sleep(SECONDS * 0.2)
        valkey.hang()
        await asyncio.sleep(SECONDS * 0.15)
        valkey.go_on()
        await asyncio.sleep(SECONDS * 0.2)
        valkey.kill()
        await asyncio.sleep(SECONDS * 0.15)
        valkey.start()
        await asyncio.sleep(SECONDS * 0.3)
        await workers.stop()
        spent, took_s = await agreed(first, owner, within_s=2 * LEASE_TTL_S + 10)
        recovered(took_s)

    assert workers.answers.get("200", 0) > 50, workers.answers
    assert workers.answers.get("budget_unavailable", 0) > 0, workers.answers
    assert spent == workers.paid_micro_usd
    assert spent <= limit
    # Two timeouts of the store, connecting included, and a place in a queue that is short here.
    assert workers.longest_s < 10


@fault(
    "the ledger's database is gone while calls run",
    "calls are served, the journal keeps what is owed, memory stays flat, the ledger is complete afterwards",
)
@pytest.mark.timeout(120)
async def test_database_gone(
    redis_scheduler: object,
    valkey_url: str,
    tmp_path: Path,
    postgres: RunningPostgres,
    recovered: Callable[[float], None],
) -> None:
    """LiteLLM #38193: failed flushes queued without bound."""
    url = postgres.new_database()
    async with running_gateway(valkey_url, tmp_path, store_url=url) as gateway:
        await gateway.add_engine("specialist", "s1", cap=64)
        assert (await gateway.ask(SMALL))[0] == 200
        await gateway.until_settled()
        settling = gateway.gateway.context.settling
        with postgres.away(url):
            rss = psutil.Process().memory_info().rss
            for _ in range(8):  # within the 10 s for which keys are remembered
                statuses = [
                    status for status, _ in await asyncio.gather(*(gateway.ask(SMALL) for _ in range(50)))
                ]
                assert statuses == [200] * 50
            kept = settling.journal_bytes
            assert psutil.Process().memory_info().rss - rss < 64 * 2**20
        assert 400 * 200 < kept < 400 * 4000
        started = time.monotonic()
        await gateway.until_settled(30)
        recovered(time.monotonic() - started)
        today = gateway.ledger.totals_of_day(_today())
        assert today.calls == 401
        assert today.spent_micro_usd == (await gateway.scheduler.spend_today()).spent_micro_usd


@fault(
    "a gateway is killed after calls ended, before they were booked",
    "the next gateway of the node books its journal, once",
)
async def test_journal_of_a_dead_gateway(redis_scheduler: object, valkey_url: str, tmp_path: Path) -> None:
    async with running_gateway(valkey_url, tmp_path) as dead:
        key, key_id = dead.new_key(Budget("", BudgetWindow.TOTAL, 10**6))
        await dead.add_engine("specialist", "s1")
        settling = dead.gateway.context.settling
        settling._ledger._booker = _NoBooker()
        answers = [await dead.ask(SMALL, key=key) for _ in range(5)]
        paid = sum(cost_of(answer) for _, answer in answers)
        while settling.open:
            await asyncio.sleep(0.01)
        assert dead.ledger.spent([(key_owner(key_id), "total")]) == {(key_owner(key_id), "total"): 0}
        # As if its process were gone: the kernel gives up its lock, the file stays.
        await settling.close()

        async with running_gateway(valkey_url, tmp_path) as heir:
            spent, _ = await agreed(heir, key_owner(key_id), within_s=10)

    assert spent == paid > 0


class _NoBooker:
    def book(self, spans: Any) -> Booked:
        raise StoreUnavailable("away")

    def close(self) -> None: ...


@fault("all gateways start at once on a budget that was spent before", "spend is unchanged")
async def test_gateways_restart_together(valkey: OwnValkey, tmp_path: Path) -> None:
    """LiteLLM #28247: re-seeding by increment counted spend once per gateway."""
    async with running_gateway(valkey.url, tmp_path) as gateway:
        key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, 10**6))
        await gateway.add_engine("specialist", "s1")
        assert (await gateway.ask(SMALL, key=key))[0] == 200
        spent, _ = await agreed(gateway, key_owner(key_id), within_s=10)
    for lose in (False, True):
        if lose:
            valkey.command("FLUSHALL")
        async with AsyncExitStack() as stack:
            fleet = [await stack.enter_async_context(running_gateway(valkey.url, tmp_path)) for _ in range(4)]
            await fleet[0].add_engine("specialist", "s1", cap=8)
            await asyncio.gather(*(each.until_ready() for each in fleet))
            answers = await asyncio.gather(*(each.ask(SMALL, key=key) for each in fleet))
            assert [status for status, _ in answers] == [200] * 4
            spent += sum(cost_of(answer) for _, answer in answers)
            assert (await agreed(fleet[0], key_owner(key_id), within_s=10))[0] == spent


def _today() -> date:
    return datetime.now(UTC).date()
