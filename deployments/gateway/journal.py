"""The settles of one gateway process on disk: written before Redis hears of them, kept until SQL has them.

`<folder>/<writer>/<segment>.jsonl`, one record per line: CRC-32 in hex, a space, compact JSON. A segment
is only ever appended to and deleted whole. Memory does not grow with the records: only the size of each
segment is kept, and reading streams from disk (SCHEDULER.md 15, row 6).

What a crash costs: nothing when only the process dies, because a returned `append` is with the kernel;
what came after the last `sync` when the machine dies.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from cluster.errors import SpratError, StartError

logger = logging.getLogger("ray.serve")

SEGMENT_BYTES = 4 * 1024**2
MAX_BYTES = 1024**3
RETRY_AFTER_S = 5.0
PROBE_BYTES = 64 * 1024
READ_BYTES = 512 * 1024
DIGITS = 10  # of a segment's number
CRC_DIGITS = 8


class JournalFull(SpratError):
    """SQL has not taken the settles for so long that the bound on disk is reached."""

    status = 503
    code = "journal_full"


class JournalUnwritable(SpratError):
    """The disk is full or broken, or the journal is closed."""

    status = 503
    code = "journal_unwritable"


class Position(NamedTuple):
    """A place between two records: bytes into a segment. Holds for one opening of the journal: a writer
    that opens an emptied one again counts its segments from 1."""

    segment: int
    offset: int


class Span(NamedTuple):
    """Part of a segment, for who reads it without the journal: whole lines of the file `path`."""

    path: str
    segment: int
    start: int
    end: int

    @property
    def end_position(self) -> Position:
        return Position(self.segment, self.end)


@dataclass(slots=True)
class _Segment:
    number: int
    size: int
    synced: int = 0

    @property
    def end(self) -> Position:
        return Position(self.number, self.size)


def writer_name(name: str) -> str:
    """Never given twice, unlike a process id."""
    return f"{name}-{secrets.token_hex(6)}"


class Journal:
    """Of one gateway process. Locked by flock for as long as it lives.

    `append` belongs to the event loop; `read`, `sync` and `drop_before` belong to a worker thread and
    never make `append` wait for the disk.
    """

    def __init__(self, home: Path, lock: int, *, writable: bool, segment_bytes: int, max_bytes: int) -> None:
        """Use `open` or `adopt_orphans`. Takes over the locked descriptor `lock`."""
        self._home = home
        self._lock_descriptor = lock
        self._writable = writable
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # of everything below; nobody reads or syncs a file under it
        self._syncing = threading.Lock()
        self._failing = False
        self._damaged = 0
        self._damage_seen = Position(0, 0)
        self._segments: dict[int, _Segment] = {}  # on disk, oldest first
        self._live: _Segment | None = None  # the last of them, or none until the next record needs it
        self._descriptor = -1  # of the live one
        self._torn = False  # there may be half a line behind the live one's size
        self._next = 1
        self._load()
        self._kept = sum(segment.size for segment in self._segments.values())
        self._disk_free = _free_bytes(home)

    @classmethod
    def open(
        cls,
        folder: Path,
        writer: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> Journal:
        """The journal of this writer, with what an earlier opening left. Raises StartError when the folder
        cannot be used or the writer lives already."""
        if not re.fullmatch(r"\w[\w.-]*", writer):
            raise ValueError(f"{writer!r} is no name for a writer: letters, digits, '_', '-' and '.' only")
        if max_bytes < 2 * segment_bytes:
            raise ValueError("max_bytes must hold two segments: one is written while the other is copied")
        home = folder / writer
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(folder):
                home.mkdir(mode=0o700, exist_ok=True)
                lock = _try_lock(home)
            if lock is None:
                raise StartError(f"the journal {home} is in use by another process.")
            try:
                for made in (folder.parent, folder):
                    _sync_path(made)
                return cls(home, lock, writable=True, segment_bytes=segment_bytes, max_bytes=max_bytes)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise StartError(f"the journal {home} cannot be used: {error.strerror}.") from error

    @classmethod
    def adopt_orphans(cls, folder: Path) -> list[Journal]:
        """Journals whose writer is dead and that nobody else adopted: to read, drop and `remove`. Those
        without a record are removed on the way."""
        if not folder.is_dir():
            return []
        orphans = []
        for home in sorted(path for path in folder.iterdir() if path.is_dir()):
            try:
                orphan = cls._adopt(home)
            except OSError as error:  # the others can still be copied
                logger.warning("the journal %s of a dead gateway cannot be read: %s", home, error.strerror)
                continue
            if orphan is not None and orphan.bytes_kept:
                orphans.append(orphan)
            elif orphan is not None:
                orphan.remove()
        return orphans

    @classmethod
    def _adopt(cls, home: Path) -> Journal | None:
        with _locked(home.parent):
            lock = _try_lock(home) if home.is_dir() else None
        if lock is None:
            return None
        try:
            return cls(home, lock, writable=False, segment_bytes=SEGMENT_BYTES, max_bytes=MAX_BYTES)
        except BaseException:
            os.close(lock)
            raise

    @property
    def writer(self) -> str:
        return self._home.name

    @property
    def begin(self) -> Position:
        """Start of the oldest kept segment."""
        with self._lock:
            return Position(next(iter(self._segments), self._next), 0)

    @property
    def end(self) -> Position:
        """Behind every record."""
        with self._lock:
            return self._live.end if self._live else Position(self._next, 0)

    @property
    def bytes_kept(self) -> int:
        return self._kept

    @property
    def wants_sync(self) -> bool:
        """Something was appended since the last `sync`, or the disk failed and should be tried again."""
        with self._lock:
            return self._failing or any(each.size > each.synced for each in self._segments.values())

    @property
    def damaged(self) -> int:
        """Lines that were not what had been written, as far as reading has come. Each counts once."""
        return self._damaged

    def has_room(self) -> bool:
        """Ask before a call is admitted: the last segment of room, on disk as under the bound, is kept
        for the settles of calls that run already."""
        return (
            self._writable
            and not self._failing
            and self._kept + self._segment_bytes <= self._max_bytes
            and self._disk_free >= self._segment_bytes
        )

    def append(self, record: dict[str, Any]) -> Position:
        """`append_all` of one."""
        return self.append_all([record])

    def append_all(self, records: Sequence[dict[str, Any]]) -> Position:
        """All in one write, or none; the position just behind the last. Integers are exact; TypeError beyond
        64 bits. Raises JournalFull at the bound, JournalUnwritable when the disk refuses."""
        lines = [_line(record) for record in records]
        joined = lines[0] if len(lines) == 1 else b"".join(lines)
        with self._lock:
            if not self._writable:
                raise JournalUnwritable("This gateway's journal is closed.")
            if self._kept + len(joined) > self._max_bytes:
                raise JournalFull(
                    "The settles that wait for the database fill their place on disk. Retry later.",
                    retry_after_s=RETRY_AFTER_S,
                )
            try:
                segment = self._segment_for(len(joined))
                self._torn = True
                written = os.write(self._descriptor, joined)
                while written < len(joined):
                    written += os.write(self._descriptor, joined[written:])
            except OSError as error:
                raise self._failed(error) from error
            self._torn = False
            segment.size += len(joined)
            self._kept += len(joined)
            return segment.end

    def read(self, after: Position, limit: int) -> list[tuple[Position, dict[str, Any]]]:
        """Up to `limit` records behind `after`, each with the position behind it; none at the end.
        Damaged lines are skipped and counted. A few hundred at a time: parsing competes with the event
        loop for the interpreter."""
        with self._lock:
            ends = [segment.end for segment in self._segments.values() if segment.end > after]
        found: list[tuple[Position, dict[str, Any]]] = []
        for end in ends:
            if len(found) >= limit:
                break
            start = after.offset if end.segment == after.segment else 0
            try:
                for position, record in _lines(self._path(end.segment), start, end):
                    if record is None:
                        self.count_damage(position)
                        continue
                    found.append((position, record))
                    if len(found) >= limit:
                        break
            except FileNotFoundError:
                if end.segment in self._segments:  # else it was dropped a moment ago
                    self.count_damage(end)
        return found

    def spans(self, after: Position, until: Position) -> list[Span]:
        """Where the records between two positions are."""
        with self._lock:
            ends = [
                segment.end if segment.number < until.segment else until
                for segment in self._segments.values()
                if segment.end > after and segment.number <= until.segment
            ]
        starts = [after.offset if end.segment == after.segment else 0 for end in ends]
        return [
            Span(str(self._path(end.segment)), end.segment, start, end.offset)
            for start, end in zip(starts, ends, strict=True)
            if start < end.offset
        ]

    def drop_before(self, position: Position) -> None:
        """Deletes the segments that end at or before it. When that is all of them, the next record starts
        a new one."""
        dropped = []
        with self._lock:
            for segment in list(self._segments.values()):
                if segment.end > position:
                    break
                if segment is self._live:
                    self._end_segment()
                del self._segments[segment.number]
                self._kept -= segment.size
                dropped.append(segment.number)
        for number in dropped:
            self._path(number).unlink(missing_ok=True)

    def sync(self) -> None:
        """What was appended before this call survives a power failure after it. Takes milliseconds; the
        event loop goes on meanwhile. Raises JournalUnwritable; the next call tries the same again, but on
        a broken disk Linux reports a failure only once: then only the copy in SQL is sure."""
        with self._syncing:
            if not self._writable:
                return
            with self._lock:
                dirty = [(each, each.size) for each in self._segments.values() if each.size > each.synced]
            try:
                for segment, _ in dirty:
                    try:
                        _sync_path(self._path(segment.number))
                    except FileNotFoundError:
                        if segment.number in self._segments:  # else it was dropped a moment ago
                            raise
                if any(segment.synced == 0 for segment, _ in dirty):
                    _sync_path(self._home)  # a file that is not in its folder is lost as well
                self._disk_free = _free_bytes(self._home)
            except OSError as error:
                raise self._failed(error) from error
            for segment, size in dirty:
                segment.synced = size
            if self._failing:
                self._probe()

    def close(self, *, remove_if_empty: bool = False) -> None:
        """Syncs and gives the lock back: what is kept becomes an orphan. Again is fine."""
        try:
            self.sync()
        finally:
            with self._syncing, self._lock:
                self._release(remove=remove_if_empty and not self._kept)

    def remove(self) -> None:
        """The end of a journal that was copied whole: `drop_before(end)` comes first, else ValueError."""
        if self._kept:
            raise ValueError(f"the journal {self.writer} still holds {self._kept} bytes")
        self.close(remove_if_empty=True)

    # Below: with the lock held, unless said otherwise.

    def _load(self) -> None:
        """Without the lock, once. Segments without a whole line (a crash right after they were made) hold
        nothing to copy."""
        for number in sorted(int(path.stem) for path in self._home.glob("[0-9]" * DIGITS + ".jsonl")):
            size = _whole_lines(self._path(number))
            if size:
                self._segments[number] = _Segment(number, size)
            else:
                self._path(number).unlink(missing_ok=True)
            # Never behind the torn line of a crash: the next record starts a new segment.
            self._next = number + 1

    def _segment_for(self, line_bytes: int) -> _Segment:
        """The segment to write to, mended or made. Raises OSError."""
        if self._live is not None and self._torn:
            try:
                os.ftruncate(self._descriptor, self._live.size)
                self._torn = False
            except OSError:
                self._end_segment()  # nothing is ever written behind half a line
        if self._live and self._live.size and self._live.size + line_bytes > self._segment_bytes:
            self._end_segment()
        if self._live is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._descriptor = os.open(self._path(self._next), flags, 0o600)
            self._live = self._segments[self._next] = _Segment(self._next, size=0)
            self._next += 1
        return self._live

    def _end_segment(self) -> None:
        if self._live is None:
            return
        descriptor, self._descriptor = self._descriptor, -1
        self._live = None
        self._torn = False
        os.close(descriptor)

    def _release(self, *, remove: bool) -> None:
        if self._lock_descriptor < 0:
            return
        self._writable = False
        numbers = list(self._segments)
        self._end_segment()
        self._segments.clear()  # from here on the files may be an adopter's
        self._kept = 0
        try:
            if remove:
                with _locked(self._home.parent), suppress(OSError):  # what stays is an empty orphan
                    for number in numbers:
                        self._path(number).unlink(missing_ok=True)
                    _lock_file(self._home).unlink()
                    self._home.rmdir()
        finally:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    # Below: without the lock, or with it.

    def _path(self, number: int) -> Path:
        return self._home / f"{number:0{DIGITS}d}.jsonl"

    def count_damage(self, position: Position, lines: int = 1) -> None:
        """So many, the last of which ends before or at `position`. Each once, however often it is read."""
        if position <= self._damage_seen or not lines:
            return
        self._damage_seen = position
        if not self._damaged:
            logger.error(
                "journal %s: a line before byte %d of segment %d is damaged and skipped; "
                "further ones are only counted",
                self._home,
                position.offset,
                position.segment,
            )
        self._damaged += lines

    def _failed(self, error: OSError) -> JournalUnwritable:
        if not self._failing:
            logger.error(
                "journal %s cannot be written: %s. New calls are refused until it can.",
                self._home,
                error.strerror,
            )
        self._failing = True
        return JournalUnwritable(
            f"This gateway cannot write its journal: {error.strerror}. Retry later.",
            retry_after_s=RETRY_AFTER_S,
        )

    def _probe(self) -> None:
        """The only way back to `has_room`: no call is admitted while the disk fails, so no record would
        come that shows that it works again, and a short one may fit where the next does not."""
        probe = self._home.parent / f".{self.writer}.probe"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
            _sync_path(probe)
        except OSError:
            return
        finally:
            with suppress(OSError):
                probe.unlink()
        self._failing = False
        logger.warning("journal %s can be written again", self._home)


def records_in(spans: Sequence[Span]) -> Iterator[tuple[Position, dict[str, Any] | None]]:
    """Each record with the position behind it; None for a damaged line, and for a file that is not there."""
    for span in spans:
        try:
            yield from _lines(Path(span.path), span.start, span.end_position)
        except FileNotFoundError:
            yield span.end_position, None


def _lines(path: Path, start: int, end: Position) -> Iterator[tuple[Position, dict[str, Any] | None]]:
    """Each line of a segment with the position behind it; None for a damaged one. In large pieces: every
    read gives the interpreter away, and it may be an event loop that waits for it."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        rest = b""
        while start < end.offset:
            piece = file.read(min(READ_BYTES, end.offset - start - len(rest)))
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                start += len(line) + 1
                yield Position(end.segment, start), _decode(line + b"\n")
            if not piece:  # somebody cut the file short
                yield end, None
                return


def _line(record: dict[str, Any]) -> bytes:
    payload = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def _decode(line: bytes) -> dict[str, Any] | None:
    crc, payload = line[: CRC_DIGITS + 1], line[CRC_DIGITS + 1 : -1]
    if crc != b"%08x " % zlib.crc32(payload):
        return None
    try:
        record = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line feed: a line that a crash tore has none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - PROBE_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_file(folder: Path) -> Path:
    return folder / "lock"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Making, adopting and removing journals excludes each other, so that nobody locks a file that is
    being removed or adopts a journal that is being made."""
    descriptor = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(home: Path) -> int | None:
    """The locked descriptor, or None while another holds it. Call it inside `_locked`."""
    descriptor = os.open(_lock_file(home), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
