"""One time limit for all calls, at a quarter of the price of `asyncio.timeout`: no timer per call, as the
oldest is always the first to run out of time."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TimeLimit:
    """`with limit.of_call():` around the awaits of a call raises TimeoutError in it after `seconds`."""

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """`loop`: asking for the running one is a system call in Python 3.11."""
        self._seconds = seconds
        self._loop = loop
        self._running: dict[_Call, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def of_call(self) -> _Call:
        return _Call(self)

    def begin(self, call: _Call) -> asyncio.Task[object] | None:
        call.deadline_s = self._loop.time() + self._seconds
        self._running[call] = None
        if self._timer is None:
            self._timer = self._loop.call_at(call.deadline_s, self._look)
        return asyncio.current_task(self._loop)

    def end(self, call: _Call) -> None:
        self._running.pop(call, None)

    def _look(self) -> None:
        self._timer = None
        while self._running:
            oldest = next(iter(self._running))
            if oldest.deadline_s > self._loop.time():
                self._timer = self._loop.call_at(oldest.deadline_s, self._look)
                return
            del self._running[oldest]
            oldest.expire()


class _Call:
    __slots__ = ("_expired", "_limit", "_task", "deadline_s")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._task: asyncio.Task[object] | None = None
        self._expired = False
        self.deadline_s = 0.0

    def __enter__(self) -> None:
        self._task = self._limit.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._limit.end(self)
        task, self._task = self._task, None
        # As in asyncio.timeout: another cancellation that came meanwhile (the client has gone) comes first.
        if self._expired and task is not None and task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        if self._task is not None:
            self._expired = True
            self._task.cancel()
