"""Server-sent events as bytes."""

from __future__ import annotations

from typing import Any

import orjson

from cluster.errors import EngineFailed

MAX_EVENT_BYTES = 4 * 2**20


class WholeEvents:
    """Bytes as they come → the same bytes up to the end of the last whole event."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Raises EngineFailed when an event grows beyond MAX_EVENT_BYTES."""
        if self._rest:
            chunk = self._rest + chunk
        if chunk.endswith(b"\n\n"):
            self._rest = b""
            return chunk
        cut = chunk.rfind(b"\n\n")
        end = 0 if cut < 0 else cut + 2
        self._rest = chunk[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EngineFailed("The engine sent an event that is too large.")
        return chunk[:end]


def split(events: bytes) -> list[bytes]:
    """Whole events, each with its blank line."""
    return [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]


def comment(name: str, value: dict[str, Any]) -> bytes:
    """An SSE comment: clients skip it, `curl` shows it."""
    return b": " + name.encode() + b" " + orjson.dumps(value) + b"\n\n"


def data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
