"""How far a journal is known to Redis: what may be booked without asking again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from enum import Enum, auto

from deployments.gateway.journal import Position

REMEMBERED = 20_000
"""Batches that wait to be booked. What comes beyond them is settled again, which is harmless: memory stays
flat when the ledger's database is away (LiteLLM #38193)."""


class _State(Enum):
    SENT = auto()
    KNOWN = auto()
    FAILED = auto()


class KnownToRedis:
    """Of a gateway's own journal, in batches: each is all that was written behind the one before, and goes by
    the position behind it. They are told of in their order, answers come in any."""

    def __init__(self, begin: Position) -> None:
        self._sure = begin
        self._ends: list[Position] = []
        self._states: dict[Position, _State] = {}
        self._forgot = False  # some behind the last of them

    def sent(self, batch: Position) -> None:
        """It stands in the journal, and Redis will be told."""
        if self._forgot or len(self._ends) >= REMEMBERED:
            self._forgot = True
        else:
            self._ends.append(batch)
            self._states[batch] = _State.SENT

    def answered(self, batch: Position, *, knows: bool) -> None:
        """`knows`: all of it."""
        if batch in self._states:
            self._states[batch] = _State.KNOWN if knows else _State.FAILED

    def until(self) -> Position:
        """All before it is known, or was `passed`."""
        for batch in self._ends:
            if self._states[batch] is not _State.KNOWN:
                break
            self._sure = batch
        self._drop_before(self._sure)
        return self._sure

    def is_on_the_way(self, position: Position) -> bool:
        """The record that ends there."""
        return self._state_at(position) is _State.SENT

    def is_known(self, position: Position) -> bool:
        """The record that ends there."""
        return position <= self._sure or self._state_at(position) is _State.KNOWN

    def passed(self, position: Position, *, is_end: bool) -> None:
        """Redis was told of all before it by other means. `is_end`: nothing stands behind it."""
        self._sure = max(self._sure, position)
        self._drop_before(self._sure)
        if is_end:
            self._forgot = False

    def _state_at(self, position: Position) -> _State | None:
        index = bisect_left(self._ends, position)
        return self._states[self._ends[index]] if index < len(self._ends) else None

    def _drop_before(self, position: Position) -> None:
        passed = bisect_right(self._ends, position)
        for batch in self._ends[:passed]:
            del self._states[batch]
        del self._ends[:passed]
