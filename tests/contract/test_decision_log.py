"""The decision log in both databases: each call once, the newest outcome, nothing for ever."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import Engine

from cluster.clock import DAY_MS, ManualClock
from cluster.decision_log import Outcome, OutcomeSource, best_outcome, row_of
from cluster.errors import StoreUnavailable
from cluster.store import decisions as store_decisions
from cluster.store import open_store
from cluster.store.decisions import DecisionLog
from cluster.store.schema import decisions as decisions_table
from cluster.store.schema import outcomes as outcomes_table
from tests.builders import NOON_MS
from tests.decisions import decision_row, logged
from tests.processes import at_once

FEEDBACK, GOLD, VERIFIER = OutcomeSource.FEEDBACK, OutcomeSource.GOLD, OutcomeSource.VERIFIER


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON_MS)


@pytest.fixture
def log(engine: Engine, clock: ManualClock) -> DecisionLog:
    return DecisionLog(engine, clock)


def rows(engine: Engine, table: Any = decisions_table) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def test_a_decision_comes_back_as_it_was(log: DecisionLog) -> None:
    decision = logged(reason="rule:\U0001f600", probability=1 / 3)

    log.append([row_of(decision)])

    assert log.find("request") == decision
    assert log.tenant_of("request") == "acme"
    assert (log.find("nothing"), log.tenant_of("nothing")) == (None, None)


def test_the_first_decision_of_a_request_stays(log: DecisionLog, engine: Engine) -> None:
    log.append([decision_row(), decision_row()])
    log.append([decision_row(tenant="other"), decision_row("second")])

    assert (log.tenant_of("request"), rows(engine)) == ("acme", 2)


def test_many_in_one_batch(log: DecisionLog, engine: Engine) -> None:
    batch = [decision_row(f"r{number}") for number in range(1201)]

    log.append(batch)
    log.append(batch)

    assert rows(engine) == 1201


def test_nothing_to_append(log: DecisionLog) -> None:
    log.append([])
    log.put_outcomes([])

    assert log.outcomes_of("request") == {}


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("newer_first", [False, True])
def test_the_newest_outcome_of_each_source_counts(log: DecisionLog, apart: bool, newer_first: bool) -> None:
    old = Outcome("request", FEEDBACK, 0.2, "bad", NOON_MS)
    new = Outcome("request", FEEDBACK, 1.0, None, NOON_MS + 1)
    gold = Outcome("request", GOLD, 0.5, "label", NOON_MS - 1)
    ordered = [new, old, gold] if newer_first else [old, new, gold]

    for batch in [[each] for each in ordered] if apart else [ordered]:
        log.put_outcomes(batch)

    found = log.outcomes_of("request")
    assert found == {FEEDBACK: new, GOLD: gold}
    assert best_outcome(found) == gold


def test_feedback_of_the_same_millisecond_replaces(log: DecisionLog) -> None:
    for score in (0.2, 0.7):
        log.put_outcomes([Outcome("request", FEEDBACK, score, None, NOON_MS)])

    assert log.outcomes_of("request")[FEEDBACK].score == 0.7


def test_the_newest_decisions_with_what_came_of_them(log: DecisionLog) -> None:
    log.append([decision_row(f"r{number}", at_ms=NOON_MS + number) for number in range(5)])
    outcomes = [
        Outcome("r4", FEEDBACK, 1.0, None, NOON_MS),
        Outcome("r4", VERIFIER, 0.0, "refused", NOON_MS),
        Outcome("r0", GOLD, 1.0, None, NOON_MS),
    ]
    log.put_outcomes(outcomes)

    found = list(log.newest(NOON_MS + 1, 3))

    assert [decision.request_id for decision, _ in found] == ["r4", "r3", "r2"]
    assert found[0][1] == {FEEDBACK: outcomes[0], VERIFIER: outcomes[1]}
    assert (found[1][1], best_outcome(found[1][1])) == ({}, None)
    assert len(list(log.newest(NOON_MS + 1, 100))) == 4


def test_old_rows_are_deleted_by_who_writes_in_portions(
    log: DecisionLog, engine: Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_decisions, "ROWS_PER_DELETE", 4)
    log.append([decision_row(f"old{number}") for number in range(6)])
    log.put_outcomes([Outcome("old1", FEEDBACK, 1.0, None, NOON_MS)])
    clock.advance(30 * DAY_MS)
    log.append([decision_row("now", at_ms=clock.now_ms())])
    assert rows(engine) == 7, "to the millisecond 30 days old"

    clock.advance(store_decisions.DELETE_PERIOD_MS)
    log.append([decision_row("new", at_ms=clock.now_ms())])
    assert rows(engine) == 4
    log.append([])
    assert rows(engine) == 2, "the rest, at the next write"
    assert rows(engine, outcomes_table) == 0
    assert log.tenant_of("now") == log.tenant_of("new") == "acme"


def test_between_two_looks_for_old_rows_nothing_is_asked(
    log: DecisionLog, engine: Engine, clock: ManualClock
) -> None:
    log.append([])
    clock.advance(store_decisions.DELETE_PERIOD_MS - 1)
    log.append([decision_row(at_ms=0)])
    assert rows(engine) == 1

    clock.advance(1)
    log.append([])
    assert rows(engine) == 0


def write(url: str, seed: int) -> None:
    engine = open_store(url)
    log = DecisionLog(engine, ManualClock(NOON_MS + 31 * DAY_MS))
    for start in range(0, 400, 50):
        old = [decision_row(f"old-{number}") for number in range(start, start + 50)]
        new = [
            decision_row(f"new-{number}", at_ms=NOON_MS + 31 * DAY_MS) for number in range(start, start + 50)
        ]
        log.append(old + new if seed % 2 else new + old)
        log.put_outcomes([Outcome(f"new-{start}", FEEDBACK, seed / 10, None, NOON_MS + 31 * DAY_MS + seed)])
    engine.dispose()


def test_many_writers_at_once(store_url: str, engine: Engine) -> None:
    at_once(write, [(store_url, seed) for seed in range(6)])

    log = DecisionLog(engine)
    assert sum(1 for _ in log.newest(NOON_MS + 31 * DAY_MS, 10_000)) == 400
    assert {log.outcomes_of(f"new-{start}")[FEEDBACK].score for start in range(0, 400, 50)} == {0.5}


def test_a_log_that_cannot_be_written_is_store_unavailable(empty_store_url: str) -> None:
    engine = open_store(empty_store_url)
    with engine.begin() as connection:
        decisions_table.drop(connection)

    with pytest.raises(StoreUnavailable):
        DecisionLog(engine).append([decision_row()])
