"""Records of a journal become rows of the ledger."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from cluster.ledger import Ledger, LedgerEntry
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
    """In this process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def book(self, spans: Sequence[Span]) -> Booked:
        entries: list[LedgerEntry] = []
        damaged = 0
        reached = spans[-1].end_position
        for read, (position, record) in enumerate(records_in(spans), start=1):
            if record is None:
                damaged += 1
            else:
                entries += _entries_of(record)
            if read == BATCH:
                reached = position
                break
        if entries:
            self._ledger.append(entries)
        return Booked(reached, damaged)

    def close(self) -> None: ...


def _entries_of(record: dict[str, Any]) -> list[LedgerEntry]:
    try:
        return [LedgerEntry(**record["entry"])]
    except (KeyError, TypeError, ValueError):
        # One record that no database would take must not hold up all that come after it.
        logger.exception("a record of the journal cannot be booked: %s", record.get("entry"))
        return []
