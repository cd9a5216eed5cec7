"""One HTTP answer, read while it arrives → contents, usage, cost, and what went wrong, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from loadtest.metrics.call_record import Outcome

COST_COMMENT = b": sprat "
MAX_MESSAGE_CHARACTERS = 200


@dataclass(slots=True)
class Answer:
    """Filled by `read_…` and `fail`. Times are those of `perf_counter`. `first_s` and `last_s` are the
    arrival of the first and last chunk with content, None where a whole answer came."""

    status: int = 0
    outcome: Outcome = Outcome.OK
    reason: str = ""
    message: str = ""
    first_s: float | None = None
    last_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    has_content: bool = False
    has_ended: bool = False

    def read_line(self, line: bytes, arrived_s: float) -> None:
        """One line of server-sent events. The arrival is that of its last byte."""
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.has_ended = True
            else:
                self._read_event(payload, arrived_s)
        elif line.startswith(COST_COMMENT):
            self.cost = self._parsed(line[len(COST_COMMENT) :]) or {}

    def end_stream(self) -> None:
        if self.outcome is not Outcome.OK:
            return
        if not self.has_ended:
            self.fail("broken", "the stream ended without [DONE]")
        elif not self.has_content:
            self.fail("empty", "an answer without content")

    def read_whole(self, body: bytes) -> None:
        answer = self._parsed(body)
        if answer is None:
            return
        self.usage = answer.get("usage") or {}
        if any(map(_content_of, answer.get("choices") or ())):
            self.has_content = True
        else:
            self.fail("empty", "an answer without content")

    def read_refusal(self, body: bytes) -> None:
        code, self.message = _error_of(body)
        self.outcome, self.reason = Outcome.REFUSED, f"{self.status} {code}".strip()

    def fail(self, reason: str, message: str) -> None:
        self.outcome, self.reason = Outcome.FAILED, reason
        self.message = message[:MAX_MESSAGE_CHARACTERS]

    def _read_event(self, payload: bytes, arrived_s: float) -> None:
        event = self._parsed(payload)
        if event is None:
            return
        if event.get("error"):
            code, message = _error_of(payload)
            self.fail(f"stream {code}".strip(), message)
        self.usage = event.get("usage") or self.usage
        if not any(map(_content_of, event.get("choices") or ())):
            return
        self.has_content = True
        if self.first_s is None or self.last_s is None:
            self.first_s = arrived_s
        else:
            self.gaps_s.append(arrived_s - self.last_s)
        self.last_s = arrived_s

    def _parsed(self, payload: bytes) -> dict[str, Any] | None:
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            self.fail("protocol", f"not JSON: {error}")
            return None
        if not isinstance(value, dict):
            self.fail("protocol", "JSON, but no object")
            return None
        return value


def _content_of(choice: dict[str, Any]) -> bool:
    """Of a chunk or a whole answer. A tool call is content; the role alone is not."""
    said = choice.get("delta") or choice.get("message") or choice
    return bool(said.get("content") or said.get("tool_calls") or said.get("text"))


def _error_of(body: bytes) -> tuple[str, str]:
    """OpenAI's `error.code` (else `type`) and `message`, else nothing and the beginning of the text."""
    try:
        error = orjson.loads(body)["error"]
        code, message = str(error.get("code") or error.get("type") or ""), str(error.get("message", ""))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        code, message = "", body.decode("utf-8", "replace")
    return code, " ".join(message.split())[:MAX_MESSAGE_CHARACTERS]
