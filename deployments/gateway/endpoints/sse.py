"""Server-sent events of a completion stream: cut into events, bytes unchanged."""

from __future__ import annotations

from typing import Any

import orjson

from cluster.types import Usage

DONE = b"data: [DONE]"
MAX_EVENT_BYTES = 4 * 2**20


class EventSplitter:
    """Feed bytes as they come; get whole events, their blank line included."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises ValueError when an event grows beyond 4 MiB."""
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of the engine is larger than {MAX_EVENT_BYTES} bytes")
        return [event + b"\n\n" for event in events]


def is_usage_event(event: bytes) -> bool:
    """The extra chunk that `include_usage` brings: no choices, the usage of the whole call."""
    return b'"choices":[]' in event and b'"usage":{' in event


def is_done(event: bytes) -> bool:
    return event.startswith(DONE)


def has_output(event: bytes) -> bool:
    """Whether a token came with it. Counts tokens of calls whose usage never arrived, so it is cheap
    and may be off by the tokens that an engine packs into one event."""
    return (
        event.startswith(b"data: {")
        and b'"choices":[{' in event
        and b'"role":"assistant","content":""' not in event
    )


def usage_from(body: dict[str, Any]) -> Usage:
    """From the `usage` object of a chunk or of a whole answer. Raises KeyError when there is none."""
    usage = body["usage"]
    return Usage(
        prompt_tokens=int(usage["prompt_tokens"]), output_tokens=int(usage.get("completion_tokens") or 0)
    )


def comment(name: str, value: dict[str, Any]) -> bytes:
    """An SSE comment: clients skip it, `curl` shows it."""
    return b": " + name.encode() + b" " + orjson.dumps(value) + b"\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
