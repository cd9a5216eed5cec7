"""The load of one process: starts its share of the calls at their time and turns each into a record.

Open loop: a call starts at its time, however many are still running, and its latency counts from there, so
that a slow server cannot slow the arrivals down (coordinated omission). What the generator itself is late
is measured for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.queue import Queue

from loadtest.generator.answer import Answer
from loadtest.generator.chat_client import ChatClient, RequestShape
from loadtest.metrics.call_record import CallRecord
from loadtest.workloads.mix import Mix
from loadtest.workloads.plan import Plan
from loadtest.workloads.planned_call import PlannedCall
from loadtest.workloads.prompts import PromptWriter

# Bodies that are written before their time comes: a burst of so many starts without delay.
BODIES_AHEAD = 256
# Users of a closed loop begin spread over this time: calls of equal length would otherwise all start in
# the same moment, again and again.
SPREAD_S = 0.5
# A refused user that asks again at once would take the processor from all others.
PAUSE_AFTER_ERROR_S = 0.01


class Generator:
    """`begin` starts an open loop; a closed one waits for its users, a greenlet each that runs `user`.
    `ended` is set when no call of this share can start or run any more."""

    def __init__(
        self,
        plan: Plan,
        shape: RequestShape,
        mix: Mix,
        prompts: PromptWriter,
        *,
        on_record: Callable[[CallRecord], None],
        on_end: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._prompts = prompts
        self._on_record = on_record
        self._on_end = on_end
        self._keys = {tenant.name: tenant.key for tenant in mix.tenants}
        self._client = ChatClient(shape)
        self.ended = Event()
        self._stop = Event()
        self._running = Group()
        self._users_begun = 0
        self._worker = 0
        self._workers = 1
        self._started_s = 0.0
        self._calls: Iterator[PlannedCall] = iter(())

    def begin(self, worker: int, workers: int, started_s: float) -> None:
        """`started_s`: the start of the run on this process' `perf_counter`."""
        self._worker, self._workers, self._started_s = worker, workers, started_s
        self._calls = self._plan.share(worker, workers)
        if self._plan.is_open:
            gevent.spawn(self._play)

    def interrupt(self) -> int:
        """No call starts any more, `on_end` is not called. Returns how many calls in flight were cut off."""
        self._stop.set()
        in_flight = len(self._running)
        self._running.kill()
        self.ended.set()
        return in_flight

    # Open loop

    def _play(self) -> None:
        bodies: Queue[tuple[PlannedCall, bytes] | None] = Queue(BODIES_AHEAD)
        writer = gevent.spawn(self._write_ahead, bodies)
        try:
            while ahead := bodies.get():
                call, body = ahead
                intended_s = self._started_s + call.at_s
                if self._sleep_until(intended_s):
                    break
                self._running.spawn(self._one, call, body, intended_s)
            self._running.join()
        finally:
            writer.kill()
        self._end()

    def _write_ahead(self, bodies: Queue[tuple[PlannedCall, bytes] | None]) -> None:
        for call in self._calls:
            bodies.put((call, self._body(call)))
            gevent.sleep(0)  # each body takes up to a millisecond: arrivals go before
        bodies.put(None)

    def _sleep_until(self, at_s: float) -> bool:
        """True if the run was interrupted. The loop's timers may fire a little early, so it asks again."""
        while (remaining_s := at_s - perf_counter()) > 0:
            if self._stop.wait(remaining_s):
                return True
        return bool(self._stop.is_set())

    # Closed loop

    def user(self) -> None:
        """Calls, one after the other, until the plan or the time ends."""
        ordinal = self._users_begun * self._workers + self._worker
        self._users_begun += 1
        begin_s = self._started_s + SPREAD_S * ordinal / (self._plan.users or 1)
        if self._sleep_until(begin_s):
            return
        while not self._stop.is_set() and not self._is_over():
            call = next(self._calls, None)
            if call is None:
                break
            answered = self._running.spawn(self._one, call, self._body(call), None)
            answered.join()
            if answered.value is not True:
                gevent.sleep(PAUSE_AFTER_ERROR_S)
        # Whoever ends finds the plan or the time over, and so will all others: nothing can start any more.
        if not self._running:
            self._end()

    def _end(self) -> None:
        if not self._stop.is_set():
            self.ended.set()
            self._on_end()

    def _is_over(self) -> bool:
        duration_s = self._plan.duration_s
        return duration_s is not None and perf_counter() >= self._started_s + duration_s

    # One call

    def _body(self, call: PlannedCall) -> bytes:
        return self._shape.body(call, self._prompts.prompt(call))

    def _one(self, call: PlannedCall, body: bytes, intended_s: float | None) -> bool:
        """`intended_s` is None where the start is not planned. True if the answer was good."""
        sent_s = perf_counter()
        answer, headers = self._client.call(body, self._keys[call.tenant])
        ended_s = perf_counter()
        zero_s = sent_s if intended_s is None else intended_s
        times = _Times(self._started_s, zero_s, sent_s, ended_s)
        record = _record(call, self._worker, answer, headers, times)
        self._on_record(record)
        return record.is_ok


@dataclass(frozen=True, slots=True)
class _Times:
    """Of `perf_counter`: the start of the run, the zero of the call's latencies, its sending, its end."""

    run_s: float
    zero_s: float
    sent_s: float
    ended_s: float


def _record(
    call: PlannedCall, worker: int, answer: Answer, headers: dict[str, str], times: _Times
) -> CallRecord:
    last_s = answer.last_s if answer.last_s is not None and not answer.reason else times.ended_s
    return CallRecord(
        index=call.index,
        worker=worker,
        tenant=call.tenant,
        task=call.task,
        intended_s=times.zero_s - times.run_s,
        lateness_s=times.sent_s - times.zero_s,
        outcome=answer.outcome,
        reason=answer.reason,
        message=answer.message,
        status=answer.status,
        ttft_s=None if answer.first_s is None else answer.first_s - times.zero_s,
        e2e_s=last_s - times.zero_s,
        gaps_s=tuple(answer.gaps_s),
        planned_prompt_tokens=call.prompt_tokens,
        planned_output_tokens=call.output_tokens,
        prompt_tokens=answer.usage.get("prompt_tokens"),
        output_tokens=answer.usage.get("completion_tokens"),
        cost_usd=_usd(answer.cost.get("cost_usd")),
        saved_usd=_usd(answer.cost.get("saved_usd")),
        tier=headers.get("x-sprat-tier"),
        model=headers.get("x-sprat-model"),
        replica=headers.get("x-sprat-replica"),
        route=headers.get("x-sprat-reason"),
        request_id=headers.get("x-sprat-request-id"),
    )


def _usd(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
