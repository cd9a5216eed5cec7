"""When to stop asking a store that does not answer, and when to ask it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.errors import SchedulerUnavailable

T = TypeVar("T")


class Breaker:
    """Opens after `failures_to_open` failures in a row; closes with the first success. While it is open only
    the gateway's own probe asks the store, every second and for ever, so no call waits for it.

    `on_change(is_open, reason)` is called once per transition (not once per request: that pinned a core of
    LiteLLM, #40672).
    """

    def __init__(self, failures_to_open: int, on_change: Callable[[bool, str], None]) -> None:
        self._failures_to_open = failures_to_open
        self._on_change = on_change
        self._failures = 0
        self.is_open = False

    def failed(self, reason: str) -> None:
        self._failures += 1
        if not self.is_open and self._failures >= self._failures_to_open:
            self.is_open = True
            self._on_change(True, reason)

    def succeeded(self) -> None:
        self._failures = 0
        if self.is_open:
            self.is_open = False
            self._on_change(False, "")

    async def guard(self, call: Callable[[], Awaitable[T]]) -> T:
        """`call`, unless the store is known to be away. Raises SchedulerUnavailable."""
        if self.is_open:
            raise SchedulerUnavailable(
                "The scheduler's store does not answer; try again shortly.", retry_after_s=1.0
            )
        return await self.report(call)

    async def report(self, call: Callable[[], Awaitable[T]]) -> T:
        """`call`, also while the breaker is open: a probe."""
        try:
            result = await call()
        except SchedulerUnavailable as error:
            self.failed(f"{type(error.__cause__).__name__}: {error.__cause__}")
            raise
        self.succeeded()
        return result
