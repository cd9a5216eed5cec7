"""How far a journal is known to Redis: what may be booked without asking again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum, auto

from deployments.gateway.journal import Position

REMEMBERED = 20_000
"""Records that wait to be booked. Beyond it they are settled again, which is harmless: memory stays flat when
the ledger's database is away (LiteLLM #38193)."""


class _State(Enum):
    SENT = auto()
    KNOWN = auto()
    FAILED = auto()


class KnownToRedis:
    """Of a gateway's own journal. Records are told of in their order, answers come in any."""

    def __init__(self, begin: Position) -> None:
        self._sure = begin
        self._positions: deque[Position] = deque()
        self._states: dict[Position, _State] = {}
        self._forgot = False  # some behind the last position

    def sent(self, positions: Iterable[Position]) -> None:
        """They stand in the journal, and Redis will be told."""
        for position in positions:
            if self._forgot or len(self._positions) >= REMEMBERED:
                self._forgot = True
                return
            self._positions.append(position)
            self._states[position] = _State.SENT

    def answered(self, position: Position, *, knows: bool) -> None:
        if position in self._states:
            self._states[position] = _State.KNOWN if knows else _State.FAILED

    def until(self) -> Position:
        """All before it is known, or was `passed`."""
        positions, states = self._positions, self._states
        while positions and states[positions[0]] is _State.KNOWN:
            self._sure = positions.popleft()
            del states[self._sure]
        return self._sure

    def is_on_the_way(self, position: Position) -> bool:
        return self._states.get(position) is _State.SENT

    def is_known(self, position: Position) -> bool:
        return position <= self._sure or self._states.get(position) is _State.KNOWN

    def passed(self, position: Position, *, is_end: bool) -> None:
        """Redis was told of all before it by other means. `is_end`: nothing stands behind it."""
        self._sure = max(self._sure, position)
        while self._positions and self._positions[0] <= position:
            del self._states[self._positions.popleft()]
        if is_end:
            self._forgot = False
