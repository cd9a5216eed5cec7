"""The ledger in both databases: every call once, and sums that are those of the rows."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import date

import pytest
from sqlalchemy import select
from sqlalchemy.engine import Engine

from cluster.errors import StoreUnavailable
from cluster.ledger import Ledger, LedgerEntry
from cluster.store import open_store
from cluster.store.schema import ledger as ledger_table
from cluster.store.schema import ledger_sums
from cluster.types import Spend
from tests.builders import NOON_MS, ledger_entry
from tests.processes import CONTEXT, at_once

MIDNIGHT_MS = NOON_MS + 12 * 3_600_000
DECEMBER_MS = 1_796_083_200_000
TENANT_DAY = ("tenant:acme", "day:20261122")


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)


def sums_of_rows(engine: Engine) -> dict[tuple[str, str], tuple[int, int]]:
    """Sum → (micro-USD, calls), added up from the rows; with no sum that is nothing."""
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    with engine.connect() as connection:
        for row in connection.execute(select(ledger_table)).mappings():
            for name in LedgerEntry(**row).sums():
                sums[name][0] += row["cost_micro_usd"]
                sums[name][1] += 1
    return {name: (spent, calls) for name, (spent, calls) in sums.items()}


def kept_sums(engine: Engine) -> dict[tuple[str, str], tuple[int, int]]:
    with engine.connect() as connection:
        rows = connection.execute(select(ledger_sums)).all()
    return {
        (row.owner, row.window_name): (row.spent_micro_usd, row.calls)
        for row in rows
        if row.spent_micro_usd or row.calls
    }


def assert_sums_are_exact(engine: Engine) -> None:
    assert kept_sums(engine) == sums_of_rows(engine)


def test_a_call_is_in_the_sums_of_its_tenant_and_its_key(ledger: Ledger) -> None:
    assert ledger.append([ledger_entry(cost_micro_usd=7)]) == 1

    windows = ("day:20261122", "month:202611", "total")
    asked = [(owner, window) for owner in ("tenant:acme", "key:k1") for window in windows]
    asked += [("tenant:other", "total"), ("key:k1", "day:20261121")]
    assert list(ledger.spent(asked).values()) == [7] * 6 + [0, 0]


def test_an_entry_comes_back_as_it_was(ledger: Ledger) -> None:
    entry = ledger_entry(estimated=True, saved_micro_usd=-5, model="modèle@2", cost_micro_usd=2**53 - 1)

    ledger.append([entry])

    assert ledger.find([entry.request_id, "nothing"]) == {entry.request_id: entry}


def test_many_entries_in_one_batch(ledger: Ledger, engine: Engine) -> None:
    entries = [ledger_entry(f"r{number}", tenant=f"t{number % 700}") for number in range(3000)]

    assert ledger.append(entries) == 3000
    assert ledger.append(entries) == 0

    assert len(ledger.find([each.request_id for each in entries])) == 3000
    spent = ledger.spent([(f"tenant:t{number}", "total") for number in range(701)])
    assert sum(spent.values()) == 3000 * 7
    assert spent["tenant:t700", "total"] == 0
    assert_sums_are_exact(engine)


def test_nothing_to_append(ledger: Ledger) -> None:
    assert ledger.append([]) == 0
    assert ledger.find([]) == {}
    assert ledger.spent([]) == {}


def test_the_same_call_counts_once(ledger: Ledger, engine: Engine) -> None:
    entry = ledger_entry()

    assert ledger.append([entry, entry]) == 1
    assert ledger.append([entry]) == 0
    assert ledger.append([ledger_entry(cost_micro_usd=1000, tenant="other")]) == 0

    assert ledger.find(["request"]) == {"request": entry}
    assert ledger.spent([TENANT_DAY]) == {TENANT_DAY: 7}
    assert_sums_are_exact(engine)


EXPIRED = ledger_entry(kind="expired", cost_micro_usd=100, estimated=True)
SETTLED = ledger_entry(kind="settled", cost_micro_usd=7)


@pytest.mark.parametrize(
    ("batches", "changes"),
    [
        ([[EXPIRED], [SETTLED]], [1, 1]),
        ([[SETTLED], [EXPIRED]], [1, 0]),
        ([[EXPIRED, SETTLED]], [1]),
        ([[SETTLED, EXPIRED]], [1]),
        ([[EXPIRED], [SETTLED, EXPIRED], [EXPIRED]], [1, 1, 0]),
    ],
    ids=["settled_late", "expired_late", "together", "together_reversed", "again"],
)
def test_settled_replaces_expired_and_never_the_other_way_round(
    ledger: Ledger, engine: Engine, batches: list[list[LedgerEntry]], changes: list[int]
) -> None:
    assert [ledger.append(batch) for batch in batches] == changes

    assert ledger.find(["request"]) == {"request": SETTLED}
    assert ledger.spent([TENANT_DAY]) == {TENANT_DAY: 7}
    assert_sums_are_exact(engine)


def test_a_replaced_charge_leaves_the_windows_it_was_in(ledger: Ledger, engine: Engine) -> None:
    ledger.append([ledger_entry(kind="expired", cost_micro_usd=100, admitted_at_ms=MIDNIGHT_MS, key_id="k2")])
    ledger.append([ledger_entry(cost_micro_usd=7, admitted_at_ms=MIDNIGHT_MS - 1)])

    spent = ledger.spent([TENANT_DAY, ("tenant:acme", "day:20261123"), ("key:k2", "total")])
    assert list(spent.values()) == [7, 0, 0]
    assert_sums_are_exact(engine)


def test_calls_belong_to_the_day_and_month_of_their_admission(ledger: Ledger) -> None:
    for number, admitted_at_ms in enumerate((MIDNIGHT_MS - 1, MIDNIGHT_MS, DECEMBER_MS - 1, DECEMBER_MS)):
        entry = ledger_entry(f"r{number}", cost_micro_usd=10**number, admitted_at_ms=admitted_at_ms)
        ledger.append([entry])

    windows = ["day:20261122", "day:20261123", "day:20261130", "day:20261201", "month:202611", "month:202612"]
    spent = ledger.spent([("tenant:acme", window) for window in [*windows, "total"]])
    assert list(spent.values()) == [1, 10, 100, 1000, 111, 1000, 1111]


def test_totals_of_a_day(ledger: Ledger) -> None:
    ledger.append(
        [
            ledger_entry("a", cost_micro_usd=10, saved_micro_usd=90),
            ledger_entry("b", cost_micro_usd=200, saved_micro_usd=-100, tier="large", tenant="other"),
            ledger_entry("c", kind="expired", cost_micro_usd=30, saved_micro_usd=0),
            ledger_entry("tomorrow", admitted_at_ms=MIDNIGHT_MS),
        ]
    )

    totals = ledger.totals_of_day(date(2026, 11, 22))

    assert (totals.spent_micro_usd, totals.saved_micro_usd, totals.calls) == (240, -10, 3)
    assert totals.calls_by_tier == (("large", 1), ("small", 2))
    assert ledger.totals_of_day(date(2026, 11, 21)) == Spend()


def test_a_batch_that_fails_leaves_nothing(empty_store_url: str) -> None:
    """Rows are written before sums: make the sums fail."""
    engine = open_store(empty_store_url)
    ledger = Ledger(engine)
    with engine.begin() as connection:
        ledger_sums.drop(connection)

    with pytest.raises(StoreUnavailable):
        ledger.append([ledger_entry()])

    assert ledger.find(["request"]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "refunded"},
        {"request_id": "a\0b"},
        {"tenant": "\ud800"},
        {"model": None},
        {"cost_micro_usd": -1},
        {"cost_micro_usd": 1.5},
        {"prompt_tokens": 2**53},
        {"estimated": 1},
        {"admitted_at_ms": 2**53 - 1},
    ],
    ids=str,
)
def test_what_a_database_would_refuse_is_no_entry(change: dict[str, object]) -> None:
    """On PostgreSQL it would come back as an error for ever, with all that stands behind it."""
    with pytest.raises(ValueError):
        ledger_entry(**change)


# Many writers.


def overlapping(seed: int) -> list[LedgerEntry]:
    """Of the same 300 calls: most of them, some expired first, in an order of the writer's own."""
    chosen = random.Random(seed)
    entries = []
    for number in chosen.sample(range(300), 250):
        kinds = ["settled"] if number % 3 else ["expired", "settled"]
        entries += [
            ledger_entry(
                f"request-{number}",
                kind=kind,
                tenant=f"t{number % 5}",
                key_id=f"k{number % 7}",
                cost_micro_usd=number + (1000 if kind == "expired" else 0),
                admitted_at_ms=MIDNIGHT_MS - 150 + number,
            )
            for kind in kinds
        ]
    chosen.shuffle(entries)
    return entries


def write(url: str, seed: int) -> int:
    engine = open_store(url)
    entries = overlapping(seed)
    ledger = Ledger(engine)
    changed = 0
    for start in range(0, len(entries), 30):
        changed += ledger.append(entries[start : start + 30])
    engine.dispose()
    return changed


def test_overlapping_batches_of_many_processes_count_once(store_url: str, engine: Engine) -> None:
    seeds = range(8)

    changed = at_once(write, [(store_url, seed) for seed in seeds])

    wanted: dict[str, LedgerEntry] = {}
    for entry in (each for seed in seeds for each in overlapping(seed)):
        if entry.request_id not in wanted or entry.kind == "settled":
            wanted[entry.request_id] = entry
    found = Ledger(engine).find(list(wanted))
    assert found == wanted
    assert len(wanted) <= sum(changed) <= len(wanted) + sum(number % 3 == 0 for number in range(300))
    assert_sums_are_exact(engine)
    total = sum(each.cost_micro_usd for each in wanted.values())
    spent = Ledger(engine).spent([(f"tenant:t{number}", "total") for number in range(5)])
    assert sum(spent.values()) == total


def write_for_ever(url: str) -> None:
    ledger = Ledger(open_store(url))
    entries: Sequence[LedgerEntry]
    for batch in range(1_000_000):
        entries = [ledger_entry(f"{os.getpid()}-{batch}-{number}") for number in range(50)]
        ledger.append(entries)


def test_a_writer_that_is_killed_leaves_exact_sums(store_url: str, engine: Engine) -> None:
    ledger = Ledger(engine)
    for _ in range(3):
        writer = CONTEXT.Process(target=write_for_ever, args=(store_url,), daemon=True)
        writer.start()
        before = ledger.spent([TENANT_DAY])[TENANT_DAY]
        deadline_s = time.monotonic() + 30
        while ledger.spent([TENANT_DAY])[TENANT_DAY] == before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(random.random() * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()

    spent, calls = kept_sums(engine)[TENANT_DAY]
    assert calls >= 150
    assert calls % 50 == 0, "batches are whole"
    assert spent == 7 * calls
    assert_sums_are_exact(engine)
