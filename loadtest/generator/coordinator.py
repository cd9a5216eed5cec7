"""The side that gives the start signal and collects every record."""

from __future__ import annotations

import time
from typing import Any

import gevent
from gevent.event import Event
from locust.rpc.protocol import Message
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner

from loadtest.bad_input import BadInput
from loadtest.metrics.call_record import CallRecord
from loadtest.workloads.plan import Plan

# From the start signal to the first arrival: time for it to reach every worker and spawn the users.
LEAD_S = {LocalRunner: 0.2, MasterRunner: 1.0}
POLL_S = 0.05
# After an interrupt a worker has this long to send what it has.
LAST_RECORDS_S = 5.0


class Coordinator:
    """`worker.Worker` lists the messages. Workers that vanish are `lost`: their records are missing."""

    def __init__(self, runner: LocalRunner | MasterRunner, plan: Plan) -> None:
        self.records: list[CallRecord] = []
        self.pauses_s: list[float] = []
        self.in_flight = 0
        self.workers: list[str] = []
        self.lost: set[str] = set()
        self.interrupted = Event()
        self.started_s: float | None = None
        """`perf_counter` of the first arrival's zero; None before the start signal."""
        self._runner = runner
        self._plan = plan
        self._finished: set[str] = set()
        self._refusal: str | None = None
        runner.register_message("calls", self._on_calls)
        runner.register_message("finished", self._on_finished)
        runner.register_message("refused", self._on_refused)
        runner.environment.events.test_stopping.add_listener(self._on_stopping)  # type: ignore[no-untyped-call]

    def run(self, expected_workers: int, patience_s: float | None) -> None:
        """Returns when every worker has finished, vanished, or was interrupted. `patience_s`: how long
        workers may take to come; None is for ever."""
        with gevent.Timeout(patience_s, BadInput(f"the workers did not come within {patience_s} s")):
            self.workers = self._wait_for_workers(expected_workers)
        if self.interrupted.is_set():
            return
        self._begin()
        while not self._is_over() and not self._refusal:
            gevent.sleep(POLL_S)
        if self._refusal:
            raise BadInput(self._refusal)
        if self.interrupted.is_set():
            self._interrupt_workers()
            with gevent.Timeout(LAST_RECORDS_S, False):
                while not self._all_reported():
                    gevent.sleep(POLL_S)

    def ready_workers(self) -> int:
        return 1 if isinstance(self._runner, LocalRunner) else len(self._runner.clients.ready)

    def elapsed_s(self) -> float:
        return 0.0 if self.started_s is None else max(0.0, time.perf_counter() - self.started_s)

    def _wait_for_workers(self, expected: int) -> list[str]:
        if isinstance(self._runner, LocalRunner):
            return [self._runner.client_id]
        while self.ready_workers() < expected and not self.interrupted.is_set():
            gevent.sleep(POLL_S)
        return sorted(node.id for node in self._runner.clients.ready)[:expected]

    def _begin(self) -> None:
        lead_s = LEAD_S[type(self._runner)]
        self.started_s = time.perf_counter() + lead_s
        told = {
            "workers": len(self.workers),
            "starts_at": time.time() + lead_s,
            "fingerprint": self._plan.fingerprint(),
        }
        for index, worker in enumerate(self.workers):
            self._runner.send_message("begin", {"index": index, **told}, worker)
        self._runner.start_shape()

    def _is_over(self) -> bool:
        if self.interrupted.is_set():
            return True
        if isinstance(self._runner, MasterRunner):
            clients = self._runner.clients
            self.lost.update(
                worker
                for worker in set(self.workers) - self._finished
                if worker not in clients or clients[worker].state == STATE_MISSING
            )
        return self._all_reported()

    def _all_reported(self) -> bool:
        return self._finished | self.lost >= set(self.workers)

    def _on_calls(self, msg: Message, **_environment: Any) -> None:
        self.records.extend(map(CallRecord.from_message, msg.data["records"]))
        self.pauses_s += msg.data["pauses_s"]

    def _on_finished(self, msg: Message, **_environment: Any) -> None:
        # A local runner names itself otherwise in its messages.
        self._finished.add(self.workers[0] if msg.node_id == "local" else msg.node_id)
        self.in_flight += msg.data["in_flight"]

    def _on_refused(self, msg: Message, **_environment: Any) -> None:
        self._refusal = f"worker {msg.node_id}: {msg.data['reason']}"

    def _on_stopping(self, **_environment: Any) -> None:
        """The stop button of the web page, while calls still run. Locust tells its workers to stop right
        after this; they have to know before that their records are wanted."""
        if not self._all_reported():
            self._interrupt_workers()
            self.interrupted.set()

    def _interrupt_workers(self) -> None:
        """Those that know it already have finished and pay no attention."""
        self._runner.send_message("interrupt")
