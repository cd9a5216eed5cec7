"""Responses of `POST /v1/responses`."""

from __future__ import annotations

import time
from typing import Any

from deployments.sim.answer import Answer
from deployments.sim.generation import Generation
from deployments.sim.other_dialects import ResponseBody
from deployments.sim.shape import named_event

NO_TOOL_DETAILS = {"async": None, "caller": None, "namespace": None}


class ResponseShape:
    """One answer, as one item of the output: a message, or a call of a tool."""

    def __init__(self, generation: Generation, body: ResponseBody) -> None:
        self._generation = generation
        self._answer: Answer = generation.answers[0]
        self._body = body
        self._created_s = int(time.time())
        suffix = generation.request_id.removeprefix("resp_")
        self._item_id = ("msg_" if self._answer.tool is None else "fc_") + suffix
        self._sent = 0

    def opening(self) -> bytes:
        begun = self._response("in_progress", [], usage=None)
        events = [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", item=self._item("in_progress", ""), output_index=0),
        ]
        if self._answer.tool is None:
            events.append(self._event("response.content_part.added", part=self._part("", []), **self._place))
        return b"".join(events)

    def token(self, _index: int, position: int) -> bytes:
        delta = self._answer.tokens[position]
        if not delta:
            return b""
        if self._answer.tool is not None:
            return self._event("response.function_call_arguments.delta", delta=delta, **self._item_place)
        return self._event("response.output_text.delta", delta=delta, logprobs=[], **self._place)

    def closing(self) -> bytes:
        text, item = self._answer.text, self._item("completed", self._answer.text)
        if self._answer.tool is None:
            events = [
                self._event("response.output_text.done", text=text, logprobs=[], **self._place),
                self._event("response.content_part.done", part=self._part(text, None), **self._place),
            ]
        else:
            name = self._answer.tool
            events = [
                self._event(
                    "response.function_call_arguments.done", arguments=text, name=name, **self._item_place
                )
            ]
        events += [
            self._event("response.output_item.done", item=item, output_index=0),
            self._event("response.completed", response=self.whole()),
        ]
        return b"".join(events)

    def whole(self) -> dict[str, Any]:
        status = "incomplete" if self._answer.finish_reason == "length" else "completed"
        prompt_tokens, output_tokens = self._generation.prompt_tokens, self._generation.output_tokens
        usage = {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + output_tokens,
        }
        return self._response(status, [self._item("completed", self._answer.text)], usage=usage)

    @property
    def _item_place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0}

    @property
    def _place(self) -> dict[str, Any]:
        return self._item_place | {"content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._sent
        self._sent += 1
        return named_event(fields | {"sequence_number": number, "type": kind})

    def _item(self, status: str, text: str) -> dict[str, Any]:
        if self._answer.tool is not None:
            return {
                "arguments": text,
                "call_id": "call_" + self._item_id.removeprefix("fc_"),
                "name": self._answer.tool,
                "type": "function_call",
                "id": self._item_id,
                "status": status,
            } | NO_TOOL_DETAILS
        return {
            "id": self._item_id,
            "content": [self._part(text, None)] if status == "completed" else [],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _part(self, text: str, logprobs: list[Any] | None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _response(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._generation.request_id,
            "created_at": self._created_s,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": None,
            "model": self._generation.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": body.temperature,
            "tool_choice": body.tool_choice if body.tools else "none",
            "tools": body.tools,
            "top_p": body.top_p,
            "background": False,
            "max_output_tokens": body.max_output_tokens,
            "previous_response_id": None,
            "service_tier": "auto",
            "status": status,
            "text": body.text,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
        }
