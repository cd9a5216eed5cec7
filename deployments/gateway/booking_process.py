"""The booker of a gateway, in a process of its own: in a thread it would take the interpreter away from the
event loop, for 25 us per call and in pieces of milliseconds.

The process reads requests on standard input and answers on standard output, one JSON object per line; the
first line is the store's URL, which may hold a password. It ends with its input, and so with its gateway,
however that ends: what was not answered is booked by whoever takes the journal over.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from cluster.errors import SpratError, StoreUnavailable
from cluster.ledger import Ledger
from cluster.store import open_store
from cluster.store.decisions import DecisionLog
from deployments.gateway.booking import Booked, LedgerBooker
from deployments.gateway.journal import Position, Span

logger = logging.getLogger("ray.serve")

END_TIMEOUT_S = 5.0
NICENESS = 10
"""Rows can wait for calls."""


class BookingProcess:
    """`Booker`. Started again when it has ended."""

    def __init__(self, store_url: str) -> None:
        self._store_url = store_url
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()

    def start(self) -> None:
        """So that the first records do not wait for it."""
        with self._asking:
            self._running()

    def book(self, spans: Sequence[Span]) -> Booked:
        with self._asking:
            answer = self._ask({"spans": spans})
        error = answer.get("error")
        if error is not None:
            raise StoreUnavailable(error, retry_after_s=1.0)
        return Booked(Position(*answer["reached"]), answer["damaged"])

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _pipes(process)[0].close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # in the middle of a transaction, which is not committed then
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        return None if self._process is None else self._process.pid

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        requests, answers = _pipes(self._running())
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
            line = answers.readline()
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:  # also a closed pipe, and an answer that breaks off
            self._forget()
            raise StoreUnavailable(
                "The process that writes the ledger has ended.", retry_after_s=1.0
            ) from error
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            logger.warning("the process that writes the ledger has ended with %s", self._process.returncode)
            self._forget()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # As this process finds its modules, wherever it was started.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the gateway, which ends this one
            )
            requests, _ = _pipes(self._process)
            requests.write(json.dumps(self._store_url).encode() + b"\n")
        return self._process

    def _forget(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                pipe.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise TypeError("the process was started without pipes")
    return process.stdin, process.stdout


def main() -> None:
    os.nice(NICENESS)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    first = requests.readline()
    if not first:
        return
    booker: LedgerBooker | None = None
    for line in requests:
        try:
            if booker is None:  # not before: the database may have been away until now
                store = open_store(json.loads(first))
                booker = LedgerBooker(Ledger(store), DecisionLog(store))
            spans = [Span(*each) for each in json.loads(line)["spans"]]
            answer: dict[str, Any] = booker.book(spans)._asdict()
        except SpratError as error:
            answer = {"error": error.message}
        try:
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:  # the gateway was killed meanwhile
            os._exit(0)


if __name__ == "__main__":
    main()
