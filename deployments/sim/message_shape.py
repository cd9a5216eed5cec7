"""Responses of `POST /v1/messages` (Anthropic's dialect)."""

from __future__ import annotations

from typing import Any

import orjson

from deployments.sim.answer import Answer
from deployments.sim.generation import Generation
from deployments.sim.shape import named_event


class MessageShape:
    """One answer, as one content block: text, or the use of a tool."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._answer: Answer = generation.answers[0]

    def opening(self) -> bytes:
        usage = {"input_tokens": self._generation.prompt_tokens, "output_tokens": 0}
        message = self._message([], None, None) | {"usage": usage}
        block = {"type": "text", "text": ""} if self._answer.tool is None else self._tool_use({})
        return named_event({"type": "message_start", "message": message}) + named_event(
            {"type": "content_block_start", "content_block": block, "index": 0}
        )

    def token(self, _index: int, position: int) -> bytes:
        text = self._answer.tokens[position]
        if not text:
            return b""
        delta = {"type": "text_delta", "text": text}
        if self._answer.tool is not None:
            delta = {"type": "input_json_delta", "partial_json": text}
        return named_event({"type": "content_block_delta", "delta": delta, "index": 0})

    def closing(self) -> bytes:
        reason, sequence = self._stop()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return (
            named_event({"type": "content_block_stop", "index": 0})
            + named_event({"type": "message_delta", "delta": delta, "usage": self._usage()})
            + named_event({"type": "message_stop"})
        )

    def whole(self) -> dict[str, Any]:
        message = self._message([self._block()], *self._stop()) | {"usage": self._usage()}
        return {key: value for key, value in message.items() if value is not None}  # as vLLM does

    def _block(self) -> dict[str, Any]:
        text = self._answer.text
        if self._answer.tool is None:
            return {"type": "text", "text": text}
        # Cut off by the limit it is no JSON, and as in vLLM then no call either.
        try:
            return self._tool_use(orjson.loads(text))
        except orjson.JSONDecodeError:
            return {"type": "text", "text": text}

    def _tool_use(self, arguments: Any) -> dict[str, Any]:
        call_id = f"toolu_{self._generation.request_id.removeprefix('chatcmpl-')}"
        return {"type": "tool_use", "id": call_id, "name": self._answer.tool, "input": arguments}

    def _stop(self) -> tuple[str, str | None]:
        if self._answer.finish_reason == "length":
            return "max_tokens", None
        if self._answer.tool is not None:
            return "tool_use", None
        stop = self._answer.stop_reason
        return ("end_turn", None) if stop is None else ("stop_sequence", stop)

    def _usage(self) -> dict[str, int]:
        return {
            "input_tokens": self._generation.prompt_tokens,
            "output_tokens": self._generation.output_tokens,
        }

    def _message(self, content: list[Any], reason: str | None, sequence: str | None) -> dict[str, Any]:
        return {
            "id": self._generation.request_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._generation.model,
            "stop_reason": reason,
            "stop_sequence": sequence,
        }
