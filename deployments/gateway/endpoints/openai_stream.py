"""Streams and usage of OpenAI's completion routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from cluster.errors import EngineFailed
from cluster.types import Usage
from deployments.gateway.endpoints.endpoint import Body
from deployments.gateway.endpoints.generation import wants_usage
from deployments.gateway.endpoints.sse import WholeEvents, split

USAGE = b'"usage":{'
NO_CHOICES = b'"choices":[]'
A_CHOICE = b'"choices":[{'
ONLY_THE_ROLE = b'"role":"assistant","content":""'
DONE = b"data: [DONE]"
ERROR = b'data: {"error"'


class OpenAiStream:
    """`StreamReader`. Events pass in the pieces in which they came; only those pieces are taken apart that
    hold the usage, an error or the end. Inside JSON strings quotes are escaped, so no text of an answer
    looks like one of these."""

    def __init__(self, body: Body, before_end: Callable[[Usage | None], bytes]) -> None:
        self.usage: Usage | None = None
        self.outputs = 0
        self.finished = False
        self._show_usage = wants_usage(body)
        self._before_end = before_end
        self._whole = WholeEvents()

    def feed(self, chunk: bytes) -> bytes:
        events = self._whole.feed(chunk)
        if USAGE in events or b"[DONE]" in events or ERROR in events:
            return b"".join(map(self._one, split(events)))
        self.outputs += events.count(A_CHOICE) - events.count(ONLY_THE_ROLE)
        return events

    def _one(self, event: bytes) -> bytes:
        if event.startswith(ERROR):
            raise EngineFailed("The engine reported an error while generating.")
        if event.startswith(DONE):
            self.finished = True
            return self._before_end(self.usage) + event
        if USAGE in event:
            self.usage = usage_of_answer(event.removeprefix(b"data: "))
            if NO_CHOICES in event and not self._show_usage:
                return b""
        if A_CHOICE in event and ONLY_THE_ROLE not in event:
            self.outputs += 1
        return event


def usage_of_answer(raw: bytes) -> Usage:
    """From the `usage` object of a chunk or of a whole answer. Raises EngineFailed."""
    try:
        return usage_from(orjson.loads(raw)["usage"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise EngineFailed("The engine sent an answer that cannot be read.") from error


def usage_from(usage: dict[str, Any]) -> Usage:
    """`estimated`: by the replica of an upstream that reported none."""
    return Usage(
        prompt_tokens=int(usage["prompt_tokens"]),
        output_tokens=int(usage.get("completion_tokens") or 0),
        estimated=bool(usage.get("estimated")),
    )
