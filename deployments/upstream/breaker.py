"""When to stop asking an upstream that fails, and when to try it again. Pure.

Unlike the scheduler's store, which its gateway probes for ever (`cluster/scheduler/breaker.py`), an upstream
that fails is left alone for a while, then one call tries it for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

LONGEST_COOLDOWN_S = 300.0


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Opens after `failures_to_open` failures in a row, or at once (`trip`). After a cooldown one call at a
    time may try; its success closes the circuit, its failure opens it again for twice as long."""

    def __init__(
        self, failures_to_open: int, cooldown_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures_to_open = failures_to_open
        self._first_cooldown_s = self._cooldown_s = cooldown_s
        self._clock_s = clock_s
        self._failures = 0
        self._open_until_s: float | None = None
        self._is_tried = False
        self._is_on_probation = False
        self.reason = ""
        """Why it is not closed."""

    @property
    def circuit(self) -> Circuit:
        if self._open_until_s is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self._clock_s() < self._open_until_s else Circuit.HALF_OPEN

    def admit(self) -> float:
        """Seconds until a call may try again; 0: this one may, and must report how it went: `began` and then
        `succeeded` or `failed`, or one of these alone, or `abandoned`."""
        circuit = self.circuit
        if circuit is Circuit.CLOSED:
            return 0.0
        if circuit is Circuit.HALF_OPEN and not self._is_tried:
            self._is_tried = True
            return 0.0
        # Of a trial that runs nobody knows how long it takes.
        return max((self._open_until_s or 0.0) - self._clock_s(), 1.0)

    def began(self) -> None:
        """An answer has begun, which may take minutes. It closes the circuit on probation: a failure before
        the next success opens it again."""
        if self.circuit is Circuit.HALF_OPEN:
            self._close()
            self._failures = self._failures_to_open - 1
            self._is_on_probation = True

    def succeeded(self) -> None:
        """A call that was let through before the circuit opened does not close it."""
        if self.circuit is not Circuit.OPEN:
            self._close()
            self._failures = 0
            self._cooldown_s = self._first_cooldown_s
            self._is_on_probation = False

    def failed(self, reason: str) -> None:
        self._failures += 1
        circuit = self.circuit
        if circuit is Circuit.HALF_OPEN or (
            circuit is Circuit.CLOSED and self._failures >= self._failures_to_open
        ):
            self.trip(reason)

    def trip(self, reason: str) -> None:
        """At once: the next call would fail as well."""
        if self.circuit is Circuit.HALF_OPEN or self._is_on_probation:
            self._cooldown_s = min(self._cooldown_s * 2, LONGEST_COOLDOWN_S)
        self._open_until_s = self._clock_s() + self._cooldown_s
        self._is_tried = self._is_on_probation = False
        self.reason = reason

    def abandoned(self) -> None:
        """A call ended before anything was learned, because its client left: another one may try."""
        self._is_tried = False

    def _close(self) -> None:
        self._open_until_s = None
        self._is_tried = False
        self.reason = ""
