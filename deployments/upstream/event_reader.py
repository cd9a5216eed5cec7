"""Server-sent events as any server may write them: CRLF, comments, data over several lines."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.upstream.failure import UnreadableError

MAX_EVENT_BYTES = 4 * 2**20


class EventReader:
    """Bytes as they come → the data of whole events. Raises UnreadableError when one grows too large."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))
        if self._size + len(self._line) > MAX_EVENT_BYTES:
            raise UnreadableError("an event is too large")

    def end(self) -> Iterator[bytes]:
        """What was not followed by a blank line."""
        yield from self._take(self._line.removesuffix(b"\r"))
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
            if self._size > MAX_EVENT_BYTES:
                raise UnreadableError("an event is too large")
        elif not line and self._data:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            yield data
