"""Records of a journal become rows of the ledger, and their decisions rows of the decision log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from cluster.decision_log import LoggedDecision, logged_decision
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
        decisions: list[dict[str, Any]] = []
        damaged = 0
        reached = spans[-1].end_position
        for read, (position, record) in enumerate(records_in(spans), start=1):
            if record is None:
                damaged += 1
            else:
                entries += _entries_of(record)
                if (decision := record.get("decision")) is not None:
                    decisions.append(decision)
            if read == BATCH:
                reached = position
                break
        if entries:
            self._ledger.append(entries)
        if decisions:
            self._log(decisions)
        return Booked(reached, damaged)

    def close(self) -> None: ...

    def _log(self, fields_of_each: Sequence[dict[str, Any]]) -> None:
        decisions: list[LoggedDecision] = []
        problem: Exception | None = None
        for fields in fields_of_each:
            try:
                decisions.append(logged_decision(fields))
            except ValueError as error:
                problem = error
        try:
            self._decision_log.append(decisions)
        except StoreUnavailable as error:
            decisions, problem = [], error
        lost = len(fields_of_each) - len(decisions)
        if lost:
            logger.error(
                "%d of %d decisions are not in the decision log, the last because: %s",
                lost,
                len(fields_of_each),
                problem,
            )


def _entries_of(record: dict[str, Any]) -> list[LedgerEntry]:
    try:
        return [LedgerEntry(**record["entry"])]
    except (KeyError, TypeError, ValueError):
        # One record that no database would take must not hold up all that come after it.
        logger.exception("a record of the journal cannot be booked: %s", record.get("entry"))
        return []
