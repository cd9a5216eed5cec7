"""Time as an argument: the same code runs live, in tests and in the simulator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

DAY_MS = 86_400_000


class Clock(Protocol):
    """Milliseconds since the Unix epoch."""

    def now_ms(self) -> int: ...


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(slots=True)
class ManualClock:
    """Moves only when told to."""

    time_ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, by_ms: int) -> None:
        if by_ms < 0:
            raise ValueError(f"time does not go back: advance({by_ms})")
        self.time_ms += by_ms
