"""Journal, Redis, ledger: in this order, each once, whatever of them is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import ManualClock
from cluster.errors import SchedulerUnavailable, StoreUnavailable
from cluster.ledger import Ledger, LedgerEntry
from cluster.scheduler.memory_scheduler import MemoryScheduler
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from cluster.types import BudgetLine, HeldLease, SettleRequest
from deployments.gateway.booking import LedgerBooker
from deployments.gateway.budget_rebuild import BudgetRebuild
from deployments.gateway.journal import Journal
from deployments.gateway.ledger_copy import LedgerCopy, settle_request_of
from deployments.gateway.settling import Settling
from deployments.gateway.tasks import end_task, raise_if_cancelled
from tests.builders import admit_request, ready_replica

TOTAL = BudgetLine("key:a", "total", 10**9)
NAME = ("key:a", "total")
NOW_MS = 1_795_305_600_000


class Store:
    """The twin, which can be away."""

    def __init__(self) -> None:
        self.twin = MemoryScheduler(ManualClock(NOW_MS))
        self.away = False
        self.settled: list[str] = []

    async def settle(self, request: SettleRequest) -> Any:
        if self.away:
            raise SchedulerUnavailable("away")
        self.settled.append(request.request_id)
        return await self.twin.settle(request)

    async def settle_all(self, requests: Any) -> Any:
        return [await self.settle(request) for request in requests]

    async def rebuild(self, spent: Any, grace_ms: int = 0) -> str:
        if self.away:
            raise SchedulerUnavailable("away")
        return await self.twin.rebuild(spent, grace_ms)


class Books(Ledger):
    away = False

    def append(self, entries: Any) -> int:
        if self.away:
            raise StoreUnavailable("away")
        return super().append(entries)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()
        engine = open_store(sqlite_url(folder / "store.sqlite"))
        self.ledger = Books(engine)
        self.booker = LedgerBooker(self.ledger, DecisionLog(engine))
        self.doubted: set[tuple[str, str]] = set()
        self.settling = self.start()

    def start(self) -> Settling:
        journal = Journal.open(self.folder / "journal", "one")
        folder = self.folder / "journal"
        copy = LedgerCopy(self.store, self.booker, journal, folder, self.doubted.update)
        return Settling(self.store, journal, copy)

    async def admit(self, request_id: str, hold: int = 50) -> None:
        await self.store.twin.heartbeat(ready_replica("a", max_concurrency=99))
        await self.store.twin.admit(admit_request(request_id, budgets=(TOTAL,), hold_micro_usd=hold))

    def settle(self, request_id: str, cost: int = 10) -> None:
        request = SettleRequest(request_id, ("small",), "small", cost, 5, budgets=(NAME,))
        self.settling.settle(request, asdict(entry(request_id, cost)))

    def in_ledger(self) -> int:
        return self.ledger.spent([NAME])[NAME]

    async def in_redis(self) -> tuple[int, int]:
        (state,) = await self.store.twin.budget_states([NAME])
        return state.spent_micro_usd, state.held_micro_usd


def entry(request_id: str, cost: int) -> LedgerEntry:
    return LedgerEntry(
        request_id=request_id,
        kind="settled",
        tenant="acme",
        key_id="a",
        tier="small",
        pool="small",
        model="m",
        prompt_tokens=1,
        output_tokens=1,
        estimated=False,
        cost_micro_usd=cost,
        saved_micro_usd=0,
        engine_ms=1,
        admitted_at_ms=NOW_MS,
        settled_at_ms=NOW_MS,
    )


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.store.away = made.ledger.away = False
    await made.settling.close()


async def flushed(setup: Setup) -> None:
    async with asyncio.timeout(5):
        while not await setup.settling.flush():
            await asyncio.sleep(0.01)


async def test_a_settle_reaches_both_once(setup: Setup) -> None:
    await setup.admit("r")
    setup.settle("r")
    await flushed(setup)
    await flushed(setup)

    assert setup.store.settled == ["r"]
    assert await setup.in_redis() == (10, 0)
    assert setup.in_ledger() == 10
    assert setup.settling.journal_bytes == 0


async def test_nothing_is_booked_before_redis_knows(setup: Setup) -> None:
    """Or raising Redis to the ledger would count the call, and its settle once more."""
    await setup.admit("r")
    setup.store.away = True
    setup.settle("r")
    await asyncio.sleep(0.05)
    assert not await setup.settling.flush()
    assert setup.in_ledger() == 0

    setup.store.away = False
    await flushed(setup)
    assert await setup.in_redis() == (10, 0)
    assert setup.in_ledger() == 10
    assert setup.doubted == set()


async def test_a_call_that_redis_does_not_know_comes_through_the_ledger(setup: Setup) -> None:
    setup.settle("decided-alone")
    await flushed(setup)
    assert setup.in_ledger() == 10
    assert setup.doubted == {NAME}

    rebuild = BudgetRebuild(setup.store, setup.ledger, 0)
    await rebuild.advance()
    await rebuild.ensure([TOTAL])
    assert await setup.in_redis() == (10, 0)
    await rebuild.ensure([TOTAL])
    assert await setup.in_redis() == (10, 0)


async def test_a_database_that_is_away_stops_nothing_but_the_copy(setup: Setup) -> None:
    setup.ledger.away = True
    for number in range(30):
        await setup.admit(f"r{number}")
        setup.settle(f"r{number}")
    await asyncio.sleep(0.05)
    assert not await setup.settling.flush()
    assert await setup.in_redis() == (300, 0)
    assert setup.settling.journal_bytes > 0
    setup.ledger.away = False
    await flushed(setup)

    assert setup.in_ledger() == 300
    assert sorted(setup.store.settled) == sorted(f"r{number}" for number in range(30)), "sent once each"


async def test_a_record_that_no_database_takes_does_not_hold_up_the_others(setup: Setup) -> None:
    bad = {"settle": None, "entry": {"request_id": "x"}}
    del bad["settle"]
    setup.settling._journal.append(bad)
    await setup.admit("r")
    setup.settle("r")
    await flushed(setup)

    assert setup.in_ledger() == 10


async def test_cancellations_that_redis_missed_are_sent_again(setup: Setup) -> None:
    await setup.admit("r")
    setup.store.away = True
    setup.settling.cancel(SettleRequest("r", ("small",), budgets=(NAME,), cancelled=True))
    await asyncio.sleep(0.05)
    assert await setup.in_redis() == (0, 50)
    setup.store.away = False
    async with asyncio.timeout(3):
        while await setup.in_redis() != (0, 0):
            await asyncio.sleep(0.05)


async def test_a_lost_call_is_booked_without_another_settle(setup: Setup) -> None:
    setup.settling.lost(entry("r", 7))
    await flushed(setup)
    assert setup.in_ledger() == 7
    assert setup.store.settled == []


async def test_what_the_journal_keeps_is_what_was_settled() -> None:
    request = SettleRequest(
        "r", ("a", "b"), "small", 1, -2, rates=(("tokens:key:a", -5),), budgets=(NAME,), cancelled=True
    )
    record = {
        "request_id": "r",
        "pools": ["a", "b"],
        "tier": "small",
        "cost_micro_usd": 1,
        "saved_micro_usd": -2,
        "rates": [["tokens:key:a", -5]],
        "budgets": [["key:a", "total"]],
        "cancelled": True,
    }
    assert settle_request_of(record) == request


class TestBudgetRebuild:
    async def test_an_epoch_is_begun_and_opened(self, setup: Setup) -> None:
        rebuild = BudgetRebuild(setup.store, setup.ledger, 0)
        assert rebuild.saw("")
        await rebuild.advance()
        assert rebuild.is_open
        assert not rebuild.saw(rebuild.epoch)
        assert rebuild.saw("rebuilding|99")
        assert not rebuild.is_open

    async def test_a_doubt_raises_again(self, setup: Setup) -> None:
        rebuild = BudgetRebuild(setup.store, setup.ledger, 0)
        await rebuild.advance()
        await rebuild.ensure([TOTAL])
        setup.ledger.append([entry("x", 70)])
        await rebuild.ensure([TOTAL])
        assert await setup.in_redis() == (0, 0), "once is enough, as long as nobody doubts"
        rebuild.doubt([NAME])
        await rebuild.raise_doubtful()
        assert await setup.in_redis() == (70, 0)

    async def test_no_call_goes_ahead_while_another_reads_the_ledger(self, setup: Setup) -> None:
        setup.ledger.append([entry("x", 70)])
        rebuild = BudgetRebuild(setup.store, setup.ledger, 0)
        await rebuild.advance()

        async def seen() -> tuple[int, int]:
            await rebuild.ensure([TOTAL])
            return await setup.in_redis()

        assert await asyncio.gather(*(seen() for _ in range(20))) == [(70, 0)] * 20

    async def test_a_ledger_that_is_away_is_an_error(self, setup: Setup) -> None:
        rebuild = BudgetRebuild(setup.store, setup.ledger, 0)
        await rebuild.advance()
        setup.store.away = True
        with pytest.raises(SchedulerUnavailable):
            await rebuild.ensure([TOTAL])
        setup.store.away = False
        await rebuild.ensure([TOTAL])


async def test_a_cancellation_that_was_swallowed_is_repeated() -> None:
    """What `asyncio.wait_for` of Python 3.11 does to it."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
        with pytest.raises(asyncio.CancelledError):
            raise_if_cancelled()
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(3):
        await end_task(task)
    assert (swallowed, task.cancelled()) == (2, True)


async def test_a_reregistered_call_that_had_ended_keeps_nothing_held(setup: Setup) -> None:
    request = admit_request("r", budgets=(TOTAL,), hold_micro_usd=50)
    await setup.admit("r")
    grant = await setup.store.twin.admit(request)
    setup.store.twin.lose_everything()
    setup.settle("r")
    await flushed(setup)
    await setup.store.twin.heartbeat(ready_replica("a"))
    assert await setup.store.twin.reregister(request, HeldLease(grant)) is not None
    assert (await setup.in_redis())[1] == 50

    setup.settling.cancel(SettleRequest("r", ("small",), budgets=(NAME,), cancelled=True))
    async with asyncio.timeout(3):
        while await setup.in_redis() != (0, 0):
            await asyncio.sleep(0.02)
    assert setup.in_ledger() == 10
