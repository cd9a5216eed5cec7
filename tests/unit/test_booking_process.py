"""The ledger's writer: another process, which may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from cluster.errors import StoreUnavailable
from cluster.ledger import Ledger
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from deployments.gateway import booking
from deployments.gateway.booking_process import BookingProcess
from deployments.gateway.journal import Journal
from tests.builders import ledger_entry

NAME = ("key:k1", "total")

GATEWAY = """
import sys, time
from deployments.gateway.booking_process import BookingProcess

process = BookingProcess(sys.argv[1])
process.start()
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal", "one", segment_bytes=2_000, max_bytes=10**6)
    yield opened
    opened.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BookingProcess]:
    made = BookingProcess(sqlite_url(tmp_path / "store.sqlite"))
    yield made
    made.close()


def spent(tmp_path: Path) -> int:
    return Ledger(open_store(sqlite_url(tmp_path / "store.sqlite"))).spent([NAME])[NAME]


def append(journal: Journal, *numbers: int) -> None:
    journal.append_all(
        [{"entry": asdict(ledger_entry(f"r{number}", cost_micro_usd=10))} for number in numbers]
    )


def test_records_of_several_segments_are_booked_once(
    journal: Journal, process: BookingProcess, tmp_path: Path
) -> None:
    for number in range(30):
        append(journal, number)
    spans = journal.spans(journal.begin, journal.end)
    assert len(spans) > 2

    assert process.book(spans) == (journal.end, 0)
    assert process.book(spans) == (journal.end, 0)
    assert spent(tmp_path) == 300


def test_damage_is_counted_and_stops_nothing(
    journal: Journal, process: BookingProcess, tmp_path: Path
) -> None:
    append(journal, 1, 2, 3)
    (span,) = journal.spans(journal.begin, journal.end)
    path = Path(span.path)
    path.write_bytes(path.read_bytes().replace(b'"r2"', b'"rX"'))

    assert process.book([span]) == (journal.end, 1)
    assert spent(tmp_path) == 20


def test_a_process_that_was_killed_is_started_again(
    journal: Journal, process: BookingProcess, tmp_path: Path
) -> None:
    append(journal, 1)
    spans = journal.spans(journal.begin, journal.end)
    process.book(spans)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        try:
            process.book(spans)
            break
        except StoreUnavailable:  # it was not dead yet when it was asked
            assert time.monotonic() < deadline
    assert process.pid != first
    assert spent(tmp_path) == 10


def test_a_store_that_cannot_be_opened_is_away_until_it_can(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    process = BookingProcess(sqlite_url(folder / "store.sqlite"))
    append(journal, 1)
    spans = journal.spans(journal.begin, journal.end)
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        process.book(spans)
    folder.mkdir()
    assert process.book(spans) == (journal.end, 0)
    process.close()
    process.close()


def test_a_batch_is_bounded(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booking, "BATCH", 2)
    engine = open_store(sqlite_url(tmp_path / "store.sqlite"))
    ledger = Ledger(engine)
    append(journal, 1, 2, 3)
    booker = booking.LedgerBooker(ledger, DecisionLog(engine))
    reached, _ = booker.book(journal.spans(journal.begin, journal.end))
    assert ledger.spent([NAME])[NAME] == 20
    assert booker.book(journal.spans(reached, journal.end)) == (journal.end, 0)
    assert ledger.spent([NAME])[NAME] == 30


def test_it_ends_with_a_gateway_that_was_killed(tmp_path: Path) -> None:
    """No close, no signal handler: the end of its input is enough."""
    gateway = subprocess.Popen(
        [
            sys.executable,
            "-c",
            GATEWAY,
            sqlite_url(tmp_path / "store.sqlite"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert gateway.stdout is not None
    pid = int(gateway.stdout.readline())
    gateway.kill()
    gateway.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
