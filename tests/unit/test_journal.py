"""A settle whose append returned is read back once and in order, whatever dies, fills up or breaks."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.errors import StartError
from deployments.gateway import journal as journal_module
from deployments.gateway.journal import Journal, JournalFull, JournalUnwritable, Position, writer_name

SETTLE = {
    "request_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
    "key": "k_0123456789abcdef",
    "tenant": "acme",
    "pool": "small",
    "prompt_tokens": 1234,
    "output_tokens": 567,
    "estimated": False,
    "cost_micro_usd": 123_456,
    "at_us": 1_712_345_678_901_234,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def open_journal(folder: Path) -> Iterator[Callable[..., Journal]]:
    opened: list[Journal] = []

    def opener(writer: str = "gateway", **bounds: int) -> Journal:
        opened.append(Journal.open(folder, writer, **bounds))
        return opened[-1]

    yield opener
    for each in opened:
        with suppress(JournalUnwritable):
            each.close()


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [{"n": number} for number in numbers]


def append_all(journal: Journal, records: list[dict[str, Any]]) -> list[Position]:
    return [journal.append(record) for record in records]


def records_of(journal: Journal, after: Position | None = None) -> list[dict[str, Any]]:
    """Read three at a time, as a pump would."""
    at, found = after or journal.begin, []
    while got := journal.read(at, 3):
        found += [record for _, record in got]
        at = got[-1][0]
    return found


def segments(journal: Journal) -> list[Path]:
    return sorted(journal._home.glob("*.jsonl"))


def fail_writes(monkeypatch: pytest.MonkeyPatch, *, times: int = 1, code: int = errno.ENOSPC) -> None:
    """The next writes stop half way, as on a full disk."""
    real, left = os.write, [times]

    def write(descriptor: int, data: bytes) -> int:
        if not left[0]:
            return real(descriptor, data)
        left[0] -= 1
        real(descriptor, data[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(journal_module.os, "write", write)


# Append and read.


def test_what_was_appended_is_read_in_order_with_the_position_behind_it(open_journal: Any) -> None:
    journal = open_journal()
    assert journal.begin == journal.end == Position(1, 0)
    assert journal.read(journal.begin, 10) == []

    positions = append_all(journal, numbered(1, 2, 3))

    assert journal.read(journal.begin, 10) == list(zip(positions, numbered(1, 2, 3), strict=True))
    assert journal.read(positions[0], 1) == [(positions[1], {"n": 2})]
    assert journal.read(journal.begin, 0) == []
    assert journal.read(positions[2], 10) == []
    assert positions == sorted(positions)
    assert positions[-1] == journal.end


def test_values_come_back_as_they_were(open_journal: Any) -> None:
    journal = open_journal()
    record = {
        "micro_usd": 2**53 + 1,
        "least": -(2**63),
        "most": 2**64 - 1,
        "text": "line\nfeed\r\0 \u2028 é 🙂",
        "none": None,
        "nested": {"list": [1, True, 0.1]},
        "": "",
    }
    journal.append(record)

    assert records_of(journal) == [record]


@pytest.mark.parametrize("value", [2**64, {1, 2}, "\ud800"])
def test_what_json_cannot_say_is_refused_and_writes_nothing(open_journal: Any, value: Any) -> None:
    journal = open_journal()

    with pytest.raises(TypeError):
        journal.append({"value": value})
    journal.append({"n": 1})

    assert records_of(journal) == numbered(1)


def test_reading_goes_across_segments_and_into_the_one_being_written(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    positions = append_all(journal, numbered(*range(20)))

    assert len(segments(journal)) > 4
    assert [path.stem for path in segments(journal)][:2] == ["0000000001", "0000000002"]
    assert all(path.stat().st_size <= 64 for path in segments(journal))
    for start in range(20):
        assert records_of(journal, positions[start]) == numbered(*range(start + 1, 20))
    assert [position for position, _ in journal.read(journal.begin, 100)] == positions


def test_a_record_larger_than_a_segment_gets_one_of_its_own(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    large = {"text": "x" * 500}
    append_all(journal, [{"n": 1}, large, {"n": 2}])

    assert len(segments(journal)) == 3
    assert records_of(journal) == [{"n": 1}, large, {"n": 2}]


def test_everything_is_for_the_owner_only(open_umask: None, open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    journal.append(SETTLE)

    modes = {path.relative_to(folder): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert modes == {
        Path("lock"): 0o600,
        Path("gateway"): 0o700,
        Path("gateway/lock"): 0o600,
        Path("gateway/0000000001.jsonl"): 0o600,
    }


def test_names_of_writers() -> None:
    assert writer_name("gateway") != writer_name("gateway")
    for name in ("", ".", "..", "a/b", ".hidden", "a\n"):
        with pytest.raises(ValueError, match="no name for a writer"):
            Journal.open(Path("/nonexistent"), name)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match=f"{tmp_path}/file/gateway cannot be used: "):
        Journal.open(tmp_path / "file", "gateway")


def test_bounds_that_leave_no_room_to_copy_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="two segments"):
        Journal.open(folder, "gateway", segment_bytes=100, max_bytes=199)


# Dropping and the bound.


def test_only_whole_segments_before_the_position_are_dropped(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    positions = append_all(journal, numbered(*range(20)))
    ends = [last for last, after in pairwise(positions) if after.segment > last.segment]

    journal.drop_before(Position(ends[1].segment, ends[1].offset - 1))
    assert journal.begin == Position(2, 0)
    journal.drop_before(ends[1])
    assert journal.begin == Position(3, 0)
    journal.drop_before(ends[0])  # again is fine
    assert [int(path.stem) for path in segments(journal)] == list(range(3, journal.end.segment + 1))
    assert journal.bytes_kept == sum(path.stat().st_size for path in segments(journal))
    assert records_of(journal) == numbered(*range(positions.index(ends[1]) + 1, 20))
    assert records_of(journal, positions[0]) == records_of(journal), "a place before the first is the first"


def test_the_segment_being_written_goes_when_all_of_it_was_copied(open_journal: Any) -> None:
    journal = open_journal()
    first, last = append_all(journal, numbered(1, 2))

    journal.drop_before(first)
    assert len(segments(journal)) == 1
    journal.drop_before(last)

    assert segments(journal) == []
    assert journal.bytes_kept == 0
    assert journal.begin == journal.end == Position(2, 0)
    assert journal.append({"n": 3}) > last
    assert records_of(journal, last) == numbered(3)


def test_the_bound_counts_every_segment_and_ends_when_something_is_dropped(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=100, max_bytes=300)
    appended = 0
    with pytest.raises(JournalFull) as caught:
        for appended in range(100):
            journal.append({"n": appended})

    assert caught.value.status == 503
    assert caught.value.code == "journal_full"
    assert caught.value.retry_after_s
    assert 300 - 20 < journal.bytes_kept <= 300
    assert sum(path.stat().st_size for path in segments(journal)) == journal.bytes_kept
    assert records_of(journal) == numbered(*range(appended)), "what did fit is there"

    journal.drop_before(Position(2, 0))
    journal.append({"n": appended})
    assert records_of(journal)[-1] == {"n": appended}


def test_there_is_no_room_for_new_calls_before_there_is_none_for_running_ones(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=100, max_bytes=300)
    while journal.has_room():
        journal.append({"n": 1})

    assert 200 < journal.bytes_kept < 300
    journal.append({"n": 2})
    journal.drop_before(journal.end)
    assert journal.has_room()


def test_there_is_no_room_when_the_disk_is_nearly_full(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(segment_bytes=1000, max_bytes=10_000)
    free = [1001]
    monkeypatch.setattr(journal_module, "_free_bytes", lambda _folder: free[0])

    for bytes_free, room in [(1001, True), (999, False), (1000, True)]:
        free[0] = bytes_free
        journal.sync()
        assert journal.has_room() is room


def test_memory_does_not_grow_with_the_records(open_journal: Any) -> None:
    journal = open_journal()
    append_all(journal, [SETTLE] * 500)
    tracemalloc.start()
    try:
        append_all(journal, [SETTLE] * 500)
        before, _ = tracemalloc.get_traced_memory()
        append_all(journal, [SETTLE] * 10_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert journal.bytes_kept > 2_000_000
    assert after - before < 5_000


# Writes that fail.


@pytest.mark.parametrize("truncates", [True, False], ids=["truncate works", "truncate fails too"])
def test_half_a_line_on_a_full_disk_stands_before_no_later_record(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, truncates: bool
) -> None:
    journal = open_journal()
    journal.append({"n": 1})
    with monkeypatch.context() as patch:
        fail_writes(patch, times=2)
        if not truncates:
            patch.setattr(journal_module.os, "ftruncate", lambda *_: os.read(-1, 1))
        for _ in range(2):
            with pytest.raises(JournalUnwritable, match="No space left on device") as caught:
                journal.append({"n": 0, "text": "never read"})
        assert records_of(journal) == numbered(1), "readable meanwhile"
        journal.append({"n": 2})
    journal.append({"n": 3})
    assert not journal.has_room(), "a short record may fit where the next does not"
    journal.sync()

    assert (caught.value.status, caught.value.code) == (503, "journal_unwritable")
    assert journal.has_room()
    assert records_of(journal) == numbered(1, 2, 3)
    journal.close()
    again = open_journal()
    assert records_of(again) == numbered(1, 2, 3)
    assert again.damaged == 0
    assert len(segments(again)) == (1 if truncates else 3 - 1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "one line per transition"


def test_a_segment_that_cannot_be_made_loses_nothing_and_is_tried_again(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    append_all(journal, numbered(1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "open", lambda *_: os.read(-1, 1))
        with pytest.raises(JournalUnwritable):
            append_all(journal, numbered(3, 4, 5, 6))

    kept = records_of(journal)
    journal.append({"n": 9})
    assert records_of(journal) == [*kept, {"n": 9}]


def test_a_disk_that_works_again_is_noticed_without_a_record(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    journal = open_journal()
    fail_writes(monkeypatch)
    with pytest.raises(JournalUnwritable):
        journal.append({"n": 1})

    for owner, name in [(Path, "write_bytes"), (journal_module.os, "fsync")]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: os.read(-1, 1))
            journal.sync()
            assert not journal.has_room()
    journal.sync()

    assert journal.has_room()
    assert list(folder.glob(".*")) == []


def test_short_writes_are_finished(open_journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal()
    real = os.write
    monkeypatch.setattr(journal_module.os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    append_all(journal, numbered(1, 2))

    assert records_of(journal) == numbered(1, 2)


def test_an_interrupt_between_write_and_count_leaves_a_journal_that_works(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal()
    real = os.write
    with monkeypatch.context() as patch:

        def interrupted(descriptor: int, data: bytes) -> int:
            real(descriptor, data)
            raise KeyboardInterrupt

        patch.setattr(journal_module.os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append({"n": 1})
    journal.append({"n": 2})

    assert records_of(journal) == numbered(2)
    assert journal.damaged == 0


# Sync.


def test_sync_reaches_every_segment_since_the_last_and_their_folder(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(journal_module.os, "fsync", fsync)
    append_all(journal, numbered(*range(7)))
    journal.sync()
    assert synced == [*(path.name for path in segments(journal)), "gateway"]

    synced.clear()
    journal.sync()
    assert synced == []

    last = segments(journal)[-1].name
    journal.append({"n": 7})
    journal.sync()
    assert synced == [last], "neither the segments nor the folder changed"


def test_a_sync_that_fails_is_tried_again(open_journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    append_all(journal, numbered(*range(6)))
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "fsync", lambda _descriptor: os.read(-1, 1))
        with pytest.raises(JournalUnwritable):
            journal.sync()
    assert not journal.has_room()

    calls: list[int] = []
    monkeypatch.setattr(journal_module.os, "fsync", calls.append)
    journal.sync()
    assert len(calls) == len(segments(journal)) + 2, "their folder and the probe"
    assert journal.has_room()


def test_a_disk_that_does_not_keep_what_it_takes_is_one_line_in_the_log(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "fsync", lambda _descriptor: os.read(-1, 1))
        for number in range(20):
            journal.append({"n": number})
            with pytest.raises(JournalUnwritable):
                journal.sync()
            assert not journal.has_room()

    assert len(caplog.records) == 1
    assert "New calls are refused until it can" in caplog.text


def test_a_file_taken_away_under_its_writer_is_no_success(open_journal: Any) -> None:
    journal = open_journal()
    journal.append({"n": 1})
    segments(journal)[0].unlink()

    with pytest.raises(JournalUnwritable):
        journal.sync()
    assert not journal.has_room()


@pytest.mark.parametrize("drop", [True, False])
def test_appending_does_not_wait_for_a_sync_and_belongs_to_the_next_one(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    journal = open_journal()
    journal.append({"n": 1})
    started, go_on, calls = threading.Event(), threading.Event(), []

    def slow(descriptor: int) -> None:
        calls.append(descriptor)
        started.set()
        assert go_on.wait(10)

    monkeypatch.setattr(journal_module.os, "fsync", slow)
    syncing = threading.Thread(target=journal.sync)
    syncing.start()
    assert started.wait(10)
    end = journal.append({"n": 2})
    assert records_of(journal) == numbered(1, 2)
    if drop:
        journal.drop_before(end)
        journal.append({"n": 3})
    go_on.set()
    syncing.join()

    calls.clear()
    for _ in range(2):
        journal.sync()
        assert len(calls) == (2 if drop else 1), "a new segment and its folder, or the same segment; once"


def test_files_are_closed_when_they_need_not_be_open(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=100_000)

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(3):
        append_all(journal, numbered(*range(50)))
        journal.sync()
        assert open_files() == before + 1, "the one being written"
    append_all(journal, numbered(*range(50)))
    assert open_files() == before + 1, "whether somebody syncs or not"
    journal.drop_before(journal.end)  # never synced
    assert open_files() == before
    journal.close()
    assert open_files() == before - 1, "the lock"


# After a crash.


@pytest.mark.parametrize("tail", [b"0", b'00000000 {"n":', b"\0" * 100_000, b"x" * 200_000])
def test_a_torn_last_line_is_ignored_and_nothing_is_written_behind_it(
    open_journal: Any, caplog: pytest.LogCaptureFixture, tail: bytes
) -> None:
    journal = open_journal()
    append_all(journal, numbered(1, 2))
    journal.close()
    with segments(journal)[0].open("ab") as file:
        file.write(tail)

    again = open_journal()
    assert records_of(again) == numbered(1, 2)
    again.append({"n": 3})

    assert records_of(again) == numbered(1, 2, 3)
    assert [path.stem for path in segments(again)] == ["0000000001", "0000000002"]
    assert again.damaged == 0
    assert caplog.records == []


def test_a_torn_line_behind_many_whole_ones(open_journal: Any) -> None:
    journal = open_journal()
    append_all(journal, [SETTLE] * 2000)
    size = journal.bytes_kept
    assert size > 3 * journal_module.PROBE_BYTES
    journal.close()
    for tail in (b"", b"x" * 10, b"x" * 100_000):
        os.truncate(segments(journal)[0], size)
        with segments(journal)[0].open("ab") as file:
            file.write(tail)
        again = open_journal()
        assert again.bytes_kept == size
        assert records_of(again) == [SETTLE] * 2000
        again.close()


def test_a_segment_with_nothing_but_a_torn_line_holds_nothing_up(open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    journal.append({"n": 1})
    journal.close()
    (folder / "gateway" / "0000000002.jsonl").write_bytes(b"0000")
    (folder / "gateway" / "0000000003.jsonl").touch()

    again = open_journal()
    assert [path.stem for path in segments(again)] == ["0000000001"]
    assert again.append({"n": 2}).segment == 4
    again.drop_before(again.end)
    again.remove()
    assert not (folder / "gateway").exists()


def damage(path: Path, line: int, change: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = change(lines[line])
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b"2", b"7"),
        lambda line: b"x" + line[1:],
        lambda line: b"\n" * len(line),
        lambda line: b"\0" * (len(line) - 1) + b"\n",
        lambda line: line[:8].upper().replace(b"0", b"+") + line[8:-2] + b"\n",
        lambda line: b"00000000 ".ljust(len(line) - 1) + b"\n",
    ],
)
def test_a_damaged_line_is_skipped_and_the_rest_is_read(
    open_journal: Any, caplog: pytest.LogCaptureFixture, change: Callable[[bytes], bytes]
) -> None:
    journal = open_journal()
    append_all(journal, numbered(1, 22, 3))
    journal.close()
    path = segments(journal)[0]
    damage(path, 1, change)
    again = open_journal()
    again.append({"n": 4})

    for _ in range(3):
        assert records_of(again) == numbered(1, 3, 4)
    lines = path.read_bytes().count(b"\n")
    assert again.damaged == lines - 2, "counted once, however often it is read"
    assert len(caplog.records) == 1
    assert "is damaged and skipped" in caplog.text


def test_many_damaged_lines_are_one_line_in_the_log(
    open_journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    append_all(journal, numbered(*range(100)))
    path = segments(journal)[0]
    for line in range(10, 90):
        damage(path, line, lambda text: b"x" + text[1:])

    assert len(journal.read(journal.begin, 15)) == 15
    assert journal.damaged == 80
    assert len(caplog.records) == 1


def test_a_damaged_end_holds_no_orphan_up(open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    append_all(journal, numbered(1, 2))
    journal.close()
    damage(segments(journal)[0], 1, lambda line: b"x" + line[1:])

    [orphan] = Journal.adopt_orphans(folder)
    assert records_of(orphan) == numbered(1)
    orphan.drop_before(orphan.end)
    orphan.remove()
    assert Journal.adopt_orphans(folder) == []


def test_a_segment_that_somebody_took_away_is_damage_and_no_end(
    open_journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    append_all(journal, numbered(*range(9)))
    first, second, *_ = segments(journal)  # of three records each
    first.unlink()
    os.truncate(second, second.stat().st_size - 10)

    assert records_of(journal) == numbered(3, 4, 6, 7, 8)
    assert journal.damaged == 2
    assert len(caplog.records) == 1


def test_what_is_dropped_while_it_is_read_is_no_damage(
    open_journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    append_all(journal, numbered(*range(9)))
    real = Journal._path

    def path(self: Journal, number: int) -> Path:
        if number == 2 and self.begin.segment == 1:
            self.drop_before(Position(3, 0))
        return real(self, number)

    monkeypatch.setattr(Journal, "_path", path)

    assert [record["n"] for _, record in journal.read(journal.begin, 100)] == [0, 1, 2, 6, 7, 8]
    assert journal.damaged == 0


# Who owns a journal.


def test_a_living_writer_is_never_adopted_and_opened_only_once(open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    journal.append({"n": 1})

    assert Journal.adopt_orphans(folder) == []
    with pytest.raises(StartError, match="in use"):
        open_journal()
    assert records_of(journal) == numbered(1)


def test_an_opening_that_failed_gives_the_lock_back(
    open_journal: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_free_bytes", lambda _folder: os.read(-1, 1))
        with pytest.raises(StartError, match="cannot be used"):
            open_journal()

    open_journal()


def test_what_a_dead_writer_left_is_adopted_read_and_removed(open_journal: Any, folder: Path) -> None:
    for name in ("one", "two"):
        journal = open_journal(name)
        append_all(journal, [{"of": name}] * 2)
        journal.close()
    living = open_journal("living")
    living.append({"of": "living"})

    orphans = Journal.adopt_orphans(folder)

    assert [orphan.writer for orphan in orphans] == ["one", "two"]
    assert Journal.adopt_orphans(folder) == [], "adopted already"
    for orphan in orphans:
        assert records_of(orphan) == [{"of": orphan.writer}] * 2
        assert not orphan.has_room()
        with pytest.raises(JournalUnwritable, match="closed"):
            orphan.append({"n": 1})
        with pytest.raises(ValueError, match="still holds"):
            orphan.remove()
        orphan.sync()
        orphan.drop_before(orphan.end)
        assert orphan.begin == orphan.end
        orphan.remove()
    assert sorted(path.name for path in folder.iterdir()) == ["living", "lock"]
    assert records_of(living) == [{"of": "living"}]


def test_an_orphan_given_back_half_copied_is_an_orphan_again(open_journal: Any, folder: Path) -> None:
    journal = open_journal(segment_bytes=64, max_bytes=10_000)
    append_all(journal, numbered(*range(20)))
    journal.close()
    [orphan] = Journal.adopt_orphans(folder)
    orphan.drop_before(Position(3, 0))
    kept = records_of(orphan)
    orphan.close()

    [again] = Journal.adopt_orphans(folder)
    assert records_of(again) == kept
    again.close()


def test_there_may_be_no_folder_and_empty_journals_vanish(open_journal: Any, folder: Path) -> None:
    assert Journal.adopt_orphans(folder) == []
    open_journal().close()
    (folder / "never-locked").mkdir()

    assert Journal.adopt_orphans(folder) == []
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_closing_removes_a_journal_only_when_it_is_empty(open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    position = journal.append({"n": 1})
    journal.close(remove_if_empty=True)
    assert len(segments(journal)) == 1

    journal = open_journal()
    journal.drop_before(position)
    journal.close(remove_if_empty=True)
    assert not (folder / "gateway").exists()


def test_a_closed_journal_touches_nothing_that_may_have_a_new_owner(open_journal: Any, folder: Path) -> None:
    journal = open_journal()
    end = journal.append({"n": 1})
    journal.close()
    journal.close()
    [orphan] = Journal.adopt_orphans(folder)

    journal.drop_before(end)
    journal.remove()
    journal.sync()
    with pytest.raises(JournalUnwritable, match="closed"):
        journal.append({"n": 2})

    assert not journal.has_room()
    assert journal.read(Position(1, 0), 10) == []
    assert records_of(orphan) == numbered(1)
    orphan.close()


def test_an_orphan_that_cannot_be_read_does_not_hide_the_others(
    open_journal: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        journal = open_journal(name)
        journal.append({"n": 1})
        journal.close()
    real = journal_module._whole_lines
    monkeypatch.setattr(
        journal_module, "_whole_lines", lambda path: os.read(-1, 1) if "bad" in str(path) else real(path)
    )

    [orphan] = Journal.adopt_orphans(folder)

    assert orphan.writer == "good"
    assert "bad of a dead gateway cannot be read" in caplog.text
    orphan.close()
    monkeypatch.undo()
    orphans = Journal.adopt_orphans(folder)
    assert len(orphans) == 2, "its lock was given back"
    for orphan in orphans:
        orphan.close()


def test_of_adopters_that_race_each_journal_gets_one(folder: Path) -> None:
    for number in range(20):
        journal = Journal.open(folder, f"gateway-{number}")
        if number % 4:  # the others are empty and vanish
            journal.append({"n": number})
        journal.close()
    together = threading.Barrier(6)

    def adopt(adopter: int) -> list[Journal]:
        together.wait()
        if adopter < 2:  # writers start meanwhile
            for number in range(20):
                Journal.open(folder, f"late-{adopter}-{number}").close(remove_if_empty=True)
            return []
        return Journal.adopt_orphans(folder)

    with ThreadPoolExecutor(6) as pool:
        adopted = [orphan for orphans in pool.map(adopt, range(6)) for orphan in orphans]

    assert sorted(orphan.writer for orphan in adopted) == sorted(f"gateway-{n}" for n in range(20) if n % 4)
    for orphan in adopted:
        orphan.drop_before(orphan.end)
        orphan.remove()
    assert [path.name for path in folder.iterdir()] == ["lock"]


WRITER = """
import sys
from pathlib import Path
from deployments.gateway.journal import Journal
journal = Journal.open(Path(sys.argv[1]), "killed", segment_bytes=4096, max_bytes=2**30)
number = 0
while True:
    journal.append({"n": number, "text": "x" * (number % 97)})
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


def test_a_writer_killed_in_the_middle_loses_no_record_whose_append_returned(folder: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = []

        def listen(said: list[int] = said, lines: Any = writer.stdout) -> None:
            said.extend(int(line) for line in lines if line.endswith("\n"))

        listener = threading.Thread(target=listen)
        listener.start()
        while len(said) < 500:
            time.sleep(0.001)
            assert writer.poll() is None
            assert Journal.adopt_orphans(folder) == [], "it lives"
        time.sleep(random.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        listener.join()
        writer.stdout.close()

        [orphan] = Journal.adopt_orphans(folder)
        found = [record["n"] for record in records_of(orphan)]

        assert said == list(range(len(said)))
        assert found == list(range(len(found))), "in order, none twice"
        assert len(said) <= len(found) <= len(said) + 1, "at most one append did not get to say so"
        assert orphan.damaged == 0
        orphan.drop_before(orphan.end)
        orphan.remove()


# At the same time.


def test_one_thread_appends_while_another_reads_syncs_and_drops(open_journal: Any) -> None:
    journal = open_journal(segment_bytes=2048, max_bytes=16_384)
    count, found, full = 10_000, [], 0
    failures: list[BaseException] = []
    ended = threading.Event()

    def copy() -> None:
        at = journal.begin
        try:
            while len(found) < count and not (ended.is_set() and not journal.read(at, 1)):
                for position, record in journal.read(at, 50):
                    found.append(record["n"])
                    at = position
                journal.drop_before(at)
        except BaseException as error:
            failures.append(error)

    def sync() -> None:
        try:
            while not ended.is_set():
                journal.sync()
                time.sleep(0.001)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=copy), threading.Thread(target=sync)]
    for thread in threads:
        thread.start()
    for number in range(count):
        while True:
            try:
                journal.append({"n": number})
            except JournalFull:
                full += 1
                assert not failures
                time.sleep(0.0005)
            else:
                break
    threads[0].join()
    ended.set()
    threads[1].join()

    assert failures == []
    assert found == list(range(count))
    assert journal.damaged == 0
    assert journal.bytes_kept == 0
    assert segments(journal) == []


# Against a plain list.


class JournalAgainstList(RuleBasedStateMachine):
    """`kept` is what must still be read, behind `cursor`, the place up to which it was copied."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.number = 0
        self.kept: list[tuple[Position, dict[str, Any]]] = []
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(self.folder, "gateway", segment_bytes=120, max_bytes=600)
        # What was dropped is gone, but only whole segments are.
        found = self.journal.read(self.journal.begin, 10_000)
        assert found[len(found) - len(self.kept) :] == self.kept
        self.cursor = self.journal.begin
        self.kept = found

    @rule(count=st.integers(1, 8), length=st.sampled_from([0, 1, 30, 60, 150]))
    def append(self, count: int, length: int) -> None:
        for _ in range(count):
            self.number += 1
            record = {"n": self.number, "text": "\n" * (length // 2)}
            before = self.journal.bytes_kept
            try:
                self.kept.append((self.journal.append(record), record))
            except JournalFull:
                assert before + length + 20 > 600 - 40
                assert self.journal.bytes_kept == before

    @rule()
    def append_on_a_full_disk(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            fail_writes(patch)
            with suppress(JournalFull), pytest.raises((JournalUnwritable, JournalFull)):
                self.journal.append({"n": -1})

    @rule(limit=st.integers(0, 12))
    def read(self, limit: int) -> None:
        assert self.journal.read(self.cursor, limit) == self.kept[:limit]

    @rule(count=st.integers(1, 12), drop=st.booleans())
    def copy(self, count: int, drop: bool) -> None:
        for position, _ in self.journal.read(self.cursor, count):
            self.cursor = position
            self.kept.pop(0)
        if drop:
            self.journal.drop_before(self.cursor)

    @rule()
    def sync(self) -> None:
        self.journal.sync()

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.open()

    @rule()
    def crash(self) -> None:
        self.journal.close()
        paths = segments(self.journal)
        if paths:
            with paths[-1].open("ab") as file:
                file.write(b'12345678 {"n":0')
        self.open()

    @precondition(lambda self: not self.kept)
    @rule()
    def empty_and_remove(self) -> None:
        self.journal.drop_before(self.journal.end)
        self.journal.remove()
        assert not (self.folder / "gateway").exists()
        self.open()

    @invariant()
    def adds_up(self) -> None:
        journal = self.journal
        assert journal.bytes_kept <= 600
        assert journal.begin <= journal.end
        assert journal.damaged == 0
        if self.kept:
            assert journal.begin <= self.kept[0][0]
            assert journal.end >= self.kept[-1][0]
        if journal.bytes_kept == 0:
            assert self.kept == []
        assert journal.read(self.cursor, 10_000) == self.kept

    def teardown(self) -> None:
        self.journal.close()
        self.temporary.cleanup()


def test_it_behaves_like_a_list() -> None:
    run_state_machine_as_test(
        JournalAgainstList, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


# Speed.


def test_an_append_takes_microseconds(
    open_journal: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The target is 10 us; the bound leaves room for a machine that is busy with other tests."""
    caplog.set_level(logging.ERROR)
    journal = open_journal()
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        append_all(journal, [SETTLE] * 500)
        took.append((time.perf_counter() - begun) / 500 * 1e6)
    begun = time.perf_counter()
    journal.sync()
    sync_ms = (time.perf_counter() - begun) * 1e3

    with capsys.disabled():
        print(f"\njournal: append {sorted(took)[10]:.1f} us, sync of 10,000 records {sync_ms:.1f} ms")
    assert min(took) < 100
