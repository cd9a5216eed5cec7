"""After any sequence of batches the ledger is what a plain model says, and its sums are those of its rows."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete
from sqlalchemy.engine import Engine

from cluster.ledger import Ledger, LedgerEntry
from cluster.store.schema import ledger, ledger_sums
from tests.builders import NOON_MS, ledger_entry
from tests.contract.test_ledger import assert_sums_are_exact

HOURS = 3_600_000

ENTRIES = st.builds(
    ledger_entry,
    request_id=st.sampled_from("abcdefgh"),
    kind=st.sampled_from(["settled", "expired"]),
    tenant=st.sampled_from(["t1", "t2"]),
    key_id=st.sampled_from(["k1", "k2"]),
    cost_micro_usd=st.integers(0, 2**40),
    admitted_at_ms=st.sampled_from([NOON_MS, NOON_MS + 12 * HOURS, NOON_MS + 240 * HOURS]),
)


def expect(model: dict[str, LedgerEntry], batch: list[LedgerEntry]) -> None:
    for entry in batch:
        before = model.get(entry.request_id)
        if before is None or (before.kind == "expired" and entry.kind == "settled"):
            model[entry.request_id] = entry


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=st.lists(st.lists(ENTRIES, max_size=6), max_size=6))
def test_the_sums_are_those_of_the_rows(engine: Engine, batches: list[list[LedgerEntry]]) -> None:
    with engine.begin() as connection:  # one database for all examples
        connection.execute(delete(ledger))
        connection.execute(delete(ledger_sums))
    under_test = Ledger(engine)
    model: dict[str, LedgerEntry] = {}

    for batch in batches:
        before = dict(model)
        expect(model, batch)
        changed = sum(before.get(request_id) != entry for request_id, entry in model.items())
        assert under_test.append(batch) >= changed
        assert under_test.find(list("abcdefgh")) == model
        assert_sums_are_exact(engine)
