"""Bodies of the other routes that generate, turned into chat bodies: vLLM does the same inside."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from deployments.sim.body import ChatBody, as_vllm, texts


class ResponseBody(BaseModel):
    """Of `POST /v1/responses`. Fields that only come back in the answer keep their form."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"

    def as_chat(self) -> ChatBody:
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        choice = self.tool_choice
        if isinstance(choice, dict):
            choice = {"function": {"name": choice.get("name")}}
        return ChatBody.model_validate(
            {
                "model": self.model,
                "messages": system + [_item_as_message(item) for item in items],
                "max_completion_tokens": self.max_output_tokens,
                "stream": self.stream,
                "response_format": _as_response_format((self.text or {}).get("format")),
                "tools": [{"function": tool} for tool in self.tools] or None,
                "tool_choice": choice if self.tools else None,
            }
        )


class CountBody(BaseModel):
    """Of `POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None

    def as_messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [_blocks_as_message(message) for message in self.messages]


class MessageBody(CountBody):
    """Of `POST /v1/messages`."""

    max_tokens: int = Field(gt=0)
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    output_config: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None

    def as_chat(self) -> ChatBody:
        answer_format = (self.output_config or {}).get("format")
        choice = self.tool_choice or {}
        named = {"function": {"name": choice.get("name")}}
        return ChatBody.model_validate(
            {
                "model": self.model,
                "messages": self.as_messages(),
                "max_completion_tokens": self.max_tokens,
                "stop": self.stop_sequences,
                "stream": self.stream,
                "response_format": _as_response_format(answer_format),
                "tools": [
                    {"function": {"name": tool["name"], "parameters": tool.get("input_schema")}}
                    for tool in self.tools or []
                ]
                or None,
                "tool_choice": named if choice.get("type") == "tool" else CHOICES.get(choice.get("type", "")),
            }
        )


def as_chat(body: ResponseBody | MessageBody) -> ChatBody:
    """Raises EngineError (400) for what makes no chat."""
    try:
        return body.as_chat()
    except ValidationError as error:
        raise as_vllm(error) from None


CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _as_response_format(answer_format: dict[str, Any] | None) -> dict[str, Any] | None:
    if answer_format is None:
        return None
    return {"type": answer_format.get("type"), "json_schema": {"schema": answer_format.get("schema")}}


def _item_as_message(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") == "function_call":
        return {"role": "assistant", "tool_calls": [{"function": {"name": item.get("name")}}]}
    return {"role": item.get("role", "tool"), "content": item.get("content", item.get("output"))}


def _blocks_as_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    results = [text for block in blocks for text in texts(block.get("content"))]
    return {
        "role": message.get("role"),
        "content": "\n".join([*texts(content), *results]),
        "tool_calls": [{"function": block} for block in blocks if block.get("type") == "tool_use"],
    }
