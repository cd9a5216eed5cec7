"""What the generating routes have in common in the bytes they send, as vLLM 0.32 sends them."""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from deployments.sim.generation import Generation

FINGERPRINT = "sprat-sim"
NO_TOKEN_DETAILS = {"prompt_tokens_details": None, "completion_tokens_details": None}
DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """The bytes of one response. Built once per request, so that a token costs one join."""

    def opening(self) -> bytes:
        """Sent before the first token, and not before it is there."""
        ...

    def token(self, index: int, position: int) -> bytes:
        """Token `position` of choice `index`; with the last one comes the finish reason."""
        ...

    def closing(self) -> bytes:
        """What ends a stream."""
        ...

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        ...


def named_event(value: dict[str, Any]) -> bytes:
    """As the dialects have it that name their events: by the type in the data."""
    return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), orjson.dumps(value))


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def usage_of(generation: Generation) -> dict[str, int]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "total_tokens": generation.prompt_tokens + generation.output_tokens,
        "completion_tokens": generation.output_tokens,
    }
