"""Progress of making weights ready: what is reported, and two ways to show it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

from deployments.weights.disk import in_gb

_LINE_INTERVAL_S = 5.0


class Progress(Protocol):
    """Hears how a model is coming along. Called from any thread, often; it must return at once."""

    def stage(self, model: str, text: str) -> None:
        """`model` entered a new stage; byte counts start again."""

    def advance(self, model: str, done_bytes: int, total_bytes: int | None) -> None:
        """`done_bytes` of the stage are done; `total_bytes` may be an estimate, None while unknown."""


class LineProgress:
    """One line per stage, and one every few seconds in between: for log files and pipes."""

    def __init__(
        self,
        stream: IO[str],
        *,
        interval_s: float = _LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._clock = clock
        self._stages: dict[str, str] = {}
        self._last_line_s = float("-inf")
        self._lock = threading.Lock()

    def stage(self, model: str, text: str) -> None:
        with self._lock:
            self._stages[model] = text
            self._write(f"{model}: {text}")

    def advance(self, model: str, done_bytes: int, total_bytes: int | None) -> None:
        with self._lock:
            if self._clock() - self._last_line_s < self._interval_s:
                return
            total = "" if total_bytes is None else f" of {in_gb(total_bytes)}"
            self._write(f"{model}: {self._stages.get(model, '')}: {in_gb(done_bytes)}{total}")

    def _write(self, line: str) -> None:
        self._last_line_s = self._clock()
        print(line, file=self._stream, flush=True)


class BarProgress:
    """A live bar per model on a terminal. Use `open_progress`, which also takes the bars down."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def stage(self, model: str, text: str) -> None:
        with self._lock:
            if model in self._tasks:  # a bar cannot go back to an unknown total
                self._bars.remove_task(self._tasks[model])
            self._tasks[model] = self._bars.add_task(f"{model}: {text}", total=None)

    def advance(self, model: str, done_bytes: int, total_bytes: int | None) -> None:
        with self._lock:
            if model in self._tasks:
                self._bars.update(self._tasks[model], completed=done_bytes, total=total_bytes)


@contextmanager
def open_progress(stream: IO[str] = sys.stderr) -> Iterator[Progress]:
    """Bars where `stream` is a terminal, lines elsewhere."""
    if not stream.isatty():
        yield LineProgress(stream)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with RichBars(*columns, console=Console(file=stream)) as bars:
        yield BarProgress(bars)
