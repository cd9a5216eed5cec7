"""Records of a journal become rows of the ledger, and their decisions rows of the decision log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cluster.decision_log import DecisionRow, logged_decision, row_of
from cluster.errors import StoreUnavailable
from cluster.ledger import Ledger, LedgerEntry
from cluster.store.decisions import DecisionLog
from deployments.gateway.journal import Position, Span, records_in

logger = logging.getLogger("ray.serve")

BATCH = 2_000
"""Records per transaction."""


class Booked(NamedTuple):
    """How far it came, and how many lines on the way were not what had been written."""

    reached: Position
    damaged: int


class Booker(Protocol):
    """Blocks; belongs to a worker thread."""

    def book(self, spans: Sequence[Span]) -> Booked:
        """The beginning of those spans (at least one), in one transaction. Booked again, a record changes
        nothing. Raises StoreUnavailable."""

    def close(self) -> None: ...


class LedgerBooker:
    """In this process. The decisions come after the money, in a transaction of their own: whatever is wrong
    with them costs decisions, which are only read, and never holds up the ledger."""

    def __init__(self, ledger: Ledger, decision_log: DecisionLog) -> None:
        self._ledger = ledger
        self._decision_log = decision_log

    def book(self, spans: Sequence[Span]) -> Booked:
        entries: list[LedgerEntry] = []
        decisions = _Decisions()
        damaged = 0
        reached = spans[-1].end_position
        for read, (position, record) in enumerate(records_in(spans), start=1):
            if record is None:
                damaged += 1
            else:
                entries += _entries_of(record)
                decisions.add(record)
            if read == BATCH:
                reached = position
                break
        if entries:
            self._ledger.append(entries)
        decisions.write(self._decision_log)
        return Booked(reached, damaged)

    def close(self) -> None: ...


@dataclass(slots=True)
class _Decisions:
    """Of a batch. Neither method raises: what cannot be kept is told of, and lost."""

    rows: list[DecisionRow] = field(default_factory=list)
    lost: int = 0
    problem: Exception | None = None

    def add(self, record: dict[str, Any]) -> None:
        decision = record.get("decision")
        if decision is None:  # a call that `reap` charged, or one that no model ran for
            return
        try:
            self.rows.append(row_of(logged_decision(decision)))
        except ValueError as error:
            self.lost, self.problem = self.lost + 1, error

    def write(self, log: DecisionLog) -> None:
        try:
            if self.rows:
                log.append(self.rows)
        except StoreUnavailable as error:
            self.lost, self.problem = self.lost + len(self.rows), error
        if self.lost:
            logger.error("%d decisions cannot be kept, the last because: %s", self.lost, self.problem)


def _entries_of(record: dict[str, Any]) -> list[LedgerEntry]:
    try:
        return [LedgerEntry(**record["entry"])]
    except (KeyError, TypeError, ValueError):
        # One record that no database would take must not hold up all that come after it.
        logger.exception("a record of the journal cannot be booked: %s", record.get("entry"))
        return []
