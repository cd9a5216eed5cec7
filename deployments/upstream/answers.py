"""An upstream's answers in the form in which engines of ours give them: compact JSON, our name of the model,
a usage that can be counted, in a stream as its last event but `[DONE]`. Pure.

The gateway reads these bytes without parsing them all, so each event of a stream is written anew here; none
is held back for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import orjson

from cluster.config.upstream import UpstreamRoute
from deployments.upstream.event_reader import EventReader
from deployments.upstream.failure import UnreadableError
from deployments.upstream.usage import estimated_usage, reported_usage, text_bytes

DONE = b"[DONE]"
KEPT = ("id", "object", "created", "model", "choices", "usage", "system_fingerprint")
"""Of chat and completions. What a provider adds (whose model it was, what it cost) is not for clients."""


class AnswerStream(Protocol):
    """Reads one streamed answer. Both methods raise UnreadableError."""

    is_finished: bool
    """The upstream said that this was all."""

    total_tokens: int | None
    """As counted or estimated, once known."""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are whole now."""

    def end(self) -> bytes:
        """After the last byte: what is still missing of a good end. Raises when the answer was cut off."""


def whole_answer(
    route: UpstreamRoute, raw: bytes, model: str, prompt_tokens: int
) -> tuple[bytes, int | None]:
    """The body for the gateway, and its tokens. `prompt_tokens`: for an answer without a usage."""
    answer = _object(raw)
    if answer.get("error"):
        raise UnreadableError("an error with status 200")
    answer["model"] = model
    if route in ("chat", "completions"):
        answer = {name: answer[name] for name in KEPT if name in answer}
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise UnreadableError("an answer without choices")
        answer["usage"] = reported_usage(answer.get("usage")) or estimated_usage(
            prompt_tokens, text_bytes(choices)
        )
    elif route == "embeddings":
        answer["usage"] = reported_usage(answer.get("usage")) or estimated_usage(prompt_tokens, 0)
    return _dumped(answer), _total(answer.get("usage"))


def answer_stream(route: UpstreamRoute, model: str, prompt_tokens: int) -> AnswerStream:
    if route in ("chat", "completions"):
        return ChoiceStream(model, prompt_tokens)
    return NamedStream(model)


class ChoiceStream:
    """Of chat and completions. `prompt_tokens`: for a stream without a usage."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.is_finished = False
        self.total_tokens: int | None = None
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._reader = EventReader()
        self._usage: dict[str, Any] | None = None
        self._output_bytes = 0
        self._frame: dict[str, Any] = {}
        self._has_finish_reason = False

    def feed(self, chunk: bytes) -> bytes:
        return b"".join(part for data in self._reader.feed(chunk) for part in self._events(data))

    def end(self) -> bytes:
        last = b"".join(part for data in self._reader.end() for part in self._events(data))
        if self.is_finished:
            return last
        if not self._has_finish_reason:
            raise UnreadableError("the stream was cut off")
        return last + b"".join(self._events(DONE))

    def _events(self, data: bytes) -> Iterator[bytes]:
        if self.is_finished:
            return
        if data.strip() == DONE:
            self.is_finished = True
            usage = self._usage or estimated_usage(self._prompt_tokens, self._output_bytes)
            self.total_tokens = _total(usage)
            yield _event(self._frame | {"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
            return
        event = _object(data)
        if event.get("error"):
            raise UnreadableError("an error in the stream")
        self._usage = reported_usage(event.pop("usage", None)) or self._usage
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise UnreadableError("an event without choices")
        if not choices:
            return  # usage, or a provider's own remarks
        event["model"] = self._model
        event = {name: event[name] for name in KEPT if name in event}
        self._frame = {name: value for name, value in event.items() if name != "choices"}
        self._output_bytes += text_bytes(choices)
        self._has_finish_reason |= any(
            isinstance(each, dict) and each.get("finish_reason") for each in choices
        )
        yield _event(event)


class NamedStream:
    """Of responses and messages: each event says its type."""

    _LAST = frozenset({"response.completed", "response.incomplete", "message_stop"})
    _FAILED = frozenset({"error", "response.failed"})

    def __init__(self, model: str) -> None:
        self.is_finished = False
        self.total_tokens: int | None = None
        self._model = model
        self._reader = EventReader()

    def feed(self, chunk: bytes) -> bytes:
        return b"".join(self._event(data) for data in self._reader.feed(chunk))

    def end(self) -> bytes:
        last = b"".join(self._event(data) for data in self._reader.end())
        if not self.is_finished:
            raise UnreadableError("the stream was cut off")
        return last

    def _event(self, data: bytes) -> bytes:
        if self.is_finished:
            return b""
        event = _object(data)
        kind = event.get("type")
        if not isinstance(kind, str) or not kind.replace("_", "").replace(".", "").isalpha():
            raise UnreadableError("an event without a type")
        if kind in self._FAILED:
            raise UnreadableError("an error in the stream")
        for inner in (event.get("response"), event.get("message")):
            if isinstance(inner, dict) and "model" in inner:
                inner["model"] = self._model
        self.is_finished = kind in self._LAST
        response = event.get("response")
        self.total_tokens = _total(response.get("usage")) if isinstance(response, dict) else self.total_tokens
        return b"event: " + kind.encode() + b"\n" + _event(event)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _dumped(value) + b"\n\n"


def _dumped(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise UnreadableError("nested too deeply") from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise UnreadableError("not JSON") from None
    if not isinstance(value, dict):
        raise UnreadableError("no JSON object")
    return value


def _total(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    for names in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        counts = [each for each in (usage.get(name, 0) for name in names) if isinstance(each, int)]
        if names[0] in usage and len(counts) == len(names):
            return sum(counts)
    return None
