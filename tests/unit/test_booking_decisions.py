"""Decisions on their way from the journal to the log: whatever is wrong with them, the money is booked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from cluster.ledger import Ledger
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from cluster.store.schema import decisions as decisions_table
from deployments.gateway.booking import LedgerBooker
from deployments.gateway.journal import Journal
from tests.builders import ledger_entry
from tests.decisions import decision_fields, logged


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal", "one")
    yield opened
    opened.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_store(sqlite_url(tmp_path / "store.sqlite"))
    yield opened
    opened.dispose()


def record(request_id: str, decision: Any = None) -> dict[str, Any]:
    entry = {"entry": asdict(ledger_entry(request_id))}
    return entry if decision is None else entry | {"decision": decision}


def book(journal: Journal, engine: Engine, *records: dict[str, Any]) -> None:
    begin = journal.end
    journal.append_all(records)
    booker = LedgerBooker(Ledger(engine), DecisionLog(engine))
    assert booker.book(journal.spans(begin, journal.end)) == (journal.end, 0)


def test_a_decision_is_kept_beside_its_entry(journal: Journal, engine: Engine) -> None:
    book(journal, engine, record("a", decision_fields("a")), record("b"))

    assert Ledger(engine).find(["a", "b"]).keys() == {"a", "b"}
    assert DecisionLog(engine).find("a") == logged("a")
    assert DecisionLog(engine).find("b") is None


def test_booked_again_nothing_changes(journal: Journal, engine: Engine) -> None:
    for tenant in ("acme", "other"):
        book(journal, engine, record("a", decision_fields("a", tenant=tenant)))

    assert DecisionLog(engine).tenant_of("a") == "acme"


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("text", "the decision"),
        ([], "the decision"),
        ({}, "request_id"),
        (decision_fields(request_id=""), "request_id"),
        (decision_fields(tenant="a\0b"), "tenant"),
        (decision_fields(reason="r" * 513), "reason"),
        (decision_fields(at_ms=True), "at_ms"),
        (decision_fields(at_ms=2**53), "at_ms"),
        (decision_fields(probability=0), "probability"),
        (decision_fields(probability=1.5), "probability"),
        (decision_fields(features={"task": ["a"]}), "features.task"),
        (decision_fields(considered=[{"target": "small", "probability": True}]), "considered.0.probability"),
        (
            decision_fields(steps=[{"tier": "a", "model": "b", "cost_micro_usd": 1.5}]),
            "steps.0.cost_micro_usd",
        ),
        (decision_fields(steps=[{"tier": "a", "model": "b", "verdict": "fine"}]), "steps.0.verdict"),
        (decision_fields(steps=[{"tier": "a", "model": "b"}] * 65), "steps"),
        (decision_fields(large_micro_usd=-1), "large_micro_usd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_decision_costs_itself_alone(
    journal: Journal, engine: Engine, caplog: pytest.LogCaptureFixture, damaged: Any, words: str
) -> None:
    with caplog.at_level(logging.ERROR, "ray.serve"):
        book(journal, engine, record("a", damaged), record("b", decision_fields("b")))

    assert Ledger(engine).find(["a", "b"]).keys() == {"a", "b"}
    assert DecisionLog(engine).find("b") == logged("b")
    assert f"1 decisions cannot be kept, the last because: {words}" in caplog.text


def test_a_log_that_cannot_be_written_does_not_hold_up_money(
    journal: Journal, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        decisions_table.drop(connection)

    with caplog.at_level(logging.ERROR, "ray.serve"):
        book(journal, engine, record("a", decision_fields("a")))

    assert Ledger(engine).find(["a"]).keys() == {"a"}
    assert "1 decisions cannot be kept" in caplog.text


def test_what_a_newer_gateway_adds_is_left_out(journal: Journal, engine: Engine) -> None:
    book(journal, engine, record("a", decision_fields("a", colour="red")))

    assert DecisionLog(engine).find("a") == logged("a")
