"""When to stop asking a store that does not answer, and when to ask it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
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

    def __enter__(self) -> None:
        """Around a call of the store: none while it is known to be away (SchedulerUnavailable)."""
        if self.is_open:
            raise SchedulerUnavailable(
                "The scheduler's store does not answer; try again shortly.", retry_after_s=1.0
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.succeeded()
        elif isinstance(error, SchedulerUnavailable):
            self.failed(f"{type(error.__cause__).__name__}: {error.__cause__}")

    async def probe(self, call: Awaitable[T]) -> T:
        """As `with`, but also while the breaker is open."""
        try:
            result = await call
        except SchedulerUnavailable as error:
            self.__exit__(type(error), error, None)
            raise
        self.succeeded()
        return result
