"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from cluster.errors import InvalidRequest
from cluster.router.features import chat_features
from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    bounded,
    described,
    fail,
    integer,
    list_of,
    object_of,
    one_of,
    only_empty,
    schema_of,
    string,
    symbol,
    text,
)
from deployments.gateway.endpoints.drafts import OpenAiDrafts
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.generation import (
    MAX_OUTPUT_TOKENS,
    SAMPLING_FIELDS,
    engine_body,
    generation_body,
    reasoning_effort,
)
from deployments.gateway.endpoints.openai_stream import OpenAiStream, usage_of_answer
from deployments.gateway.endpoints.tolerated import CHAT as TOLERATED
from deployments.gateway.endpoints.tools import FUNCTION, MAX_TOOLS, chat_tool_choice, chat_tools

MAX_MESSAGES = 2048
LITELLM_NOTES = "provider_specific_fields"
"""LiteLLM keeps notes under this name in an answer and sends them back with it."""


def chat_body(raw: bytes) -> dict[str, Any]:
    body = generation_body(raw, CHAT_FIELDS, CHAT_REQUIRED)
    if body.get("tool_choice") not in (None, "none") and not body.get("tools"):
        raise InvalidRequest("tool_choice needs tools.", param="tool_choice", code="invalid_value")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid_value")
    for message in body["messages"]:
        message.pop(LITELLM_NOTES, None)
    return body


def _message(value: Any, name: str) -> None:
    _MESSAGE(value, name)
    if value.get("content") is None and value["role"] != "assistant":
        raise fail(f"{name}.content", "a string or a list of text parts", "invalid_type")


def _content(value: Any, name: str) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise fail(name, "a string or a list of text parts", "invalid_type")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{name}: only text parts are supported here.", param=name, code="invalid_value"
            )
        if len(part) != 2:
            raise InvalidRequest(
                f"{name}: a text part has type and text only.", param=name, code="unknown_parameter"
            )


_PART = object_of({"type": one_of("text"), "text": string}, ("type", "text"))
_CALL = object_of(
    {
        "id": text(512),
        "type": FUNCTION,
        "function": object_of({"name": symbol, "arguments": string}, ("name",)),
        "index": integer(0, MAX_TOOLS),
    },
    ("function",),
)
_MESSAGE = object_of(
    {
        "role": one_of("system", "developer", "user", "assistant", "tool"),
        "content": described(
            _content,
            {"anyOf": [schema_of(string), {"type": "array", "items": schema_of(_PART), "minItems": 1}]},
        ),
        "name": text(512),
        "tool_call_id": text(512),
        "tool_calls": list_of(_CALL, 0, MAX_TOOLS),
        "refusal": string,
        # Clients send the answer back as they got it, with all that an engine leaves empty or null in it.
        "reasoning": string,
        "reasoning_content": string,
        "annotations": only_empty,
        "audio": only_empty,
        "function_call": only_empty,
        LITELLM_NOTES: bounded(64 * 1024, 8),
    },
    ("role",),
)
messages = list_of(described(_message, schema_of(_MESSAGE)), 1, MAX_MESSAGES)

CHAT_REQUIRED = ("model", "messages")
CHAT_FIELDS: dict[str, Check] = (
    SAMPLING_FIELDS
    | TOLERATED
    | {
        "messages": messages,
        "max_completion_tokens": integer(1, MAX_OUTPUT_TOKENS),
        "logprobs": boolean,
        "top_logprobs": integer(0, 20),
        "tools": chat_tools,
        "tool_choice": chat_tool_choice,
        "parallel_tool_calls": boolean,
        # For the chat templates of models that think; others leave it alone.
        "reasoning_effort": reasoning_effort,
    }
)

CHAT = Endpoint(
    path="/v1/chat/completions",
    fields=CHAT_FIELDS,
    required=CHAT_REQUIRED,
    parse=chat_body,
    features=chat_features,
    engine_body=engine_body,
    usage_of=usage_of_answer,
    stream=OpenAiStream,
    drafts=OpenAiDrafts(),
)
