"""The decision log in SQL: one row per call, kept for some days, and what came of the calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from sqlalchemy import Table, delete, select
from sqlalchemy.engine import Connection, Engine, RowMapping

from cluster.clock import DAY_MS, Clock, SystemClock
from cluster.decision_log import DecisionRow, LoggedDecision, Outcome, OutcomeSource, decision_of
from cluster.store.schema import decisions, outcomes
from cluster.store.statements import insert_into, insert_rows
from cluster.store.transactions import reading, writing

RETENTION_DAYS = 30
DELETE_PERIOD_MS = 60_000
ROWS_PER_DELETE = 5_000
"""More than a batch of the ledger's writer, so that deleting keeps up with writing."""

ROWS_PER_FETCH = 1_000

_OUTCOME_COLUMNS = tuple(column.name for column in outcomes.c)


class DecisionLog:
    """Calls block; each may raise StoreUnavailable. Who writes also deletes what is too old."""

    def __init__(
        self, engine: Engine, clock: Clock | None = None, *, retention_days: int = RETENTION_DAYS
    ) -> None:
        self._engine = engine
        self._clock = clock or SystemClock()
        self._retention_ms = retention_days * DAY_MS
        self._delete_at_ms = 0

    def append(self, batch: Iterable[DecisionRow]) -> None:
        """One transaction. The first decision of a request stays, whoever writes it again."""
        ordered = sorted(batch)  # by their ids: two writers cannot deadlock
        with writing(self._engine) as connection:
            insert_rows(connection, decisions, DecisionRow._fields, ordered)
            self._delete_some(connection)

    def put_outcomes(self, batch: Sequence[Outcome]) -> None:
        """An older outcome never replaces a newer one of the same call and source."""
        with writing(self._engine) as connection:
            _put(connection, batch)

    def find(self, request_id: str) -> LoggedDecision | None:
        with reading(self._engine) as connection:
            statement = select(decisions).where(decisions.c.request_id == request_id)
            row = connection.execute(statement).mappings().first()
        return None if row is None else _decision(row)

    def tenant_of(self, request_id: str) -> str | None:
        """None: no such call, or not yet, or too long ago."""
        with reading(self._engine) as connection:
            found: str | None = connection.scalar(
                select(decisions.c.tenant).where(decisions.c.request_id == request_id)
            )
        return found

    def outcomes_of(self, request_id: str) -> dict[OutcomeSource, Outcome]:
        statement = select(outcomes).where(outcomes.c.request_id == request_id)
        with reading(self._engine) as connection:
            rows = connection.execute(statement).mappings().all()
        return {found.source: found for row in rows if (found := _outcome(row))}

    def newest(
        self, since_ms: int, limit: int
    ) -> Iterator[tuple[LoggedDecision, dict[OutcomeSource, Outcome]]]:
        """Up to `limit` decisions with their outcomes, the newest first. A transaction is open until the last
        one was taken."""
        chosen = (
            select(decisions)
            .where(decisions.c.at_ms >= since_ms)
            .order_by(decisions.c.at_ms.desc(), decisions.c.request_id)
            .limit(limit)
            .subquery()
        )
        judged = [outcomes.c[name].label(f"outcome_{name}") for name in _OUTCOME_COLUMNS]
        statement = (
            select(chosen, *judged)
            .outerjoin(outcomes, outcomes.c.request_id == chosen.c.request_id)
            .order_by(chosen.c.at_ms.desc(), chosen.c.request_id)
            .execution_options(yield_per=ROWS_PER_FETCH)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(statement).mappings()
            for _, rows_of_call in groupby(rows, key=lambda row: row["request_id"]):
                some = list(rows_of_call)
                found = [outcome for row in some if (outcome := _outcome(row, "outcome_"))]
                yield _decision(some[0]), {each.source: each for each in found}

    def _delete_some(self, connection: Connection) -> None:
        """A portion of what is too old, again at the next write as long as there is more."""
        now_ms = self._clock.now_ms()
        if now_ms < self._delete_at_ms:
            return
        before_ms = now_ms - self._retention_ms
        deleted = [_delete_before(connection, table, before_ms) for table in (decisions, outcomes)]
        if max(deleted) < ROWS_PER_DELETE:
            self._delete_at_ms = now_ms + DELETE_PERIOD_MS


def _delete_before(connection: Connection, table: Table, before_ms: int) -> int:
    old = (
        select(table.c.request_id)
        .where(table.c.at_ms < before_ms)
        .order_by(table.c.at_ms)
        .limit(ROWS_PER_DELETE)
        .with_for_update(skip_locked=True)  # on PostgreSQL: those that another writer deletes
    )
    statement = delete(table).where(table.c.request_id.in_(old), table.c.at_ms < before_ms)
    return connection.execute(statement).rowcount


def _put(connection: Connection, batch: Sequence[Outcome]) -> None:
    newest: dict[tuple[str, str], Outcome] = {}
    for outcome in sorted(batch, key=lambda each: (each.request_id, each.source, each.at_ms)):
        newest[outcome.request_id, outcome.source] = outcome
    if not newest:
        return
    statement = insert_into(connection, outcomes)
    columns: Any = outcomes.c
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[columns.request_id, columns.source],
            set_={name: statement.excluded[name] for name in ("score", "label", "at_ms")},
            where=statement.excluded.at_ms >= columns.at_ms,
        ),
        [asdict(each) | {"source": each.source.value} for each in newest.values()],
    )


def _decision(row: RowMapping) -> LoggedDecision:
    return decision_of(DecisionRow(*(row[name] for name in DecisionRow._fields)))


def _outcome(row: RowMapping, prefix: str = "") -> Outcome | None:
    """None where the row is the empty side of an outer join."""
    if row[f"{prefix}source"] is None:
        return None
    fields = {name: row[prefix + name] for name in _OUTCOME_COLUMNS}
    return Outcome(**fields | {"source": OutcomeSource(fields["source"])})
