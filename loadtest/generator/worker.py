"""A process that makes load: obeys the master's messages and sends every record back, raw."""

from __future__ import annotations

import time
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from locust.rpc.protocol import Message
from locust.runners import LocalRunner, WorkerRunner

from loadtest.generator.generator import Generator
from loadtest.generator.locust_users import fire_rows
from loadtest.metrics.call_record import CallRecord
from loadtest.workloads.plan import Plan

FLUSH_S = 0.5
RECORDS_PER_MESSAGE = 200
PAUSE_CHECK_S = 0.05


class Worker:
    """In a run of one process the runner is a `LocalRunner`, whose messages stay in the process.

    Messages, master → worker: `begin {index, workers, starts_at, fingerprint}` (`starts_at`: Unix time),
    `interrupt`. Worker → master: `calls {records, pauses_s}`, `finished {in_flight}`, `refused {reason}`.
    """

    def __init__(self, runner: LocalRunner | WorkerRunner, plan: Plan) -> None:
        self._runner = runner
        self._plan = plan
        self._generator: Generator | None = None
        self._unsent: list[CallRecord] = []
        self._pauses_s: list[float] = []
        self._is_finished = False
        self._sending = BoundedSemaphore(1)

    def attach(self, generator: Generator) -> None:
        self._generator = generator
        self._runner.register_message("begin", self._on_begin)
        self._runner.register_message("interrupt", self._on_interrupt, concurrent=True)
        self._runner.greenlet.spawn(self._flush_for_ever)

    def take(self, record: CallRecord) -> None:
        """What the generator calls for every record."""
        self._unsent.append(record)
        fire_rows(self._runner.environment.events.request, record)

    def finish(self, in_flight: int = 0) -> None:
        """All calls of this share have ended. Messages keep their order: the records are there first."""
        if self._is_finished:
            return
        self._is_finished = True
        self._flush()
        with self._sending:
            self._runner.send_message("finished", {"in_flight": in_flight})

    def _on_begin(self, msg: Message, **_environment: Any) -> None:
        told = msg.data
        if told["fingerprint"] != self._plan.fingerprint():
            reason = "its plan differs: start it with the same workload, traces, rate, limits, mix and seed"
            self._runner.send_message("refused", {"reason": reason})
            return
        starts_s = time.perf_counter() + told["starts_at"] - time.time()
        if self._generator is not None:
            self._generator.begin(told["index"], told["workers"], starts_s)
            self._runner.greenlet.spawn(self._measure_pauses)

    def _on_interrupt(self, **_message: Any) -> None:
        if self._generator is not None:
            self.finish(self._generator.interrupt())

    def _measure_pauses(self) -> None:
        """How late a short sleep ends is how late this process may see anything: an arrival, a token."""
        while not self._is_finished:
            due_s = time.perf_counter() + PAUSE_CHECK_S
            gevent.sleep(PAUSE_CHECK_S)
            self._pauses_s.append(max(0.0, time.perf_counter() - due_s))

    def _flush_for_ever(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            self._flush()

    def _flush(self) -> None:
        while self._unsent or self._pauses_s:
            with self._sending:
                sent, self._unsent = self._unsent[:RECORDS_PER_MESSAGE], self._unsent[RECORDS_PER_MESSAGE:]
                pauses_s, self._pauses_s = self._pauses_s, []
                message = {"records": [record.as_message() for record in sent], "pauses_s": pauses_s}
                self._runner.send_message("calls", message)
            gevent.sleep(0)  # a long list must not hold arrivals up
