"""`POST /v1/messages` and `/v1/messages/count_tokens`, Anthropic's dialect."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from cluster.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, SpratError
from cluster.router.features import count_features, message_features
from cluster.types import Candidate, Usage
from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    bounded,
    closed_object,
    described,
    either,
    fail,
    integer,
    list_of,
    number,
    object_of,
    one_of,
    only_empty,
    schema_of,
    string,
    symbol,
    text,
)
from deployments.gateway.endpoints.endpoint import Body, Endpoint
from deployments.gateway.endpoints.event_stream import EventNames, NamedEventStream, named
from deployments.gateway.endpoints.generation import MAX_OUTPUT_TOKENS, MAX_STOPS, passed_on
from deployments.gateway.endpoints.json_schema import json_schema
from deployments.gateway.endpoints.message_drafts import draft_of, draft_of_events, expected_of
from deployments.gateway.endpoints.plain_drafts import PlainDrafts
from deployments.gateway.endpoints.tokenization import no_usage, uncharged_engine_body
from deployments.gateway.endpoints.tolerated import ANTHROPIC as TOLERATED
from deployments.gateway.endpoints.tools import anthropic_tool_choice, anthropic_tools, cache_control

MAX_MESSAGES = 2048
MAX_BLOCKS = 2048

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message_body(raw: bytes) -> dict[str, Any]:
    return _checked(closed_object(raw, MESSAGE_FIELDS, MESSAGE_REQUIRED))


def count_body(raw: bytes) -> dict[str, Any]:
    return _checked(closed_object(raw, COUNT_FIELDS, COUNT_REQUIRED))


def anthropic_error(error: SpratError) -> dict[str, Any]:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    # The words by which Anthropic's clients know that a shorter history would do.
    words = "prompt is too long: " if isinstance(error, ContextLengthExceeded) else ""
    return {"type": "error", "error": {"type": kind, "message": words + error.message}}


def message_usage(raw: bytes) -> Usage:
    """From a whole answer, or from the data of a `message_delta`. Anthropic counts cached prompt tokens
    apart. Raises EngineFailed."""
    try:
        usage = orjson.loads(raw)["usage"]
        prompt_tokens = sum(usage.get(part) or 0 for part in PROMPT_PARTS)
        return Usage(prompt_tokens=int(prompt_tokens), output_tokens=int(usage["output_tokens"]))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineFailed("The engine sent an answer that cannot be read.") from error


PROMPT_PARTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    choice = (body.get("tool_choice") or {}).get("type")
    if choice in ("any", "tool") and not body.get("tools"):
        raise InvalidRequest("tool_choice needs tools.", param="tool_choice", code="invalid_value")
    return body


def _engine_body(body: Body, candidate: Candidate, cache_salt: str) -> bytes:
    rewritten = passed_on(body, candidate, cache_salt, TOLERATED.keys())
    rewritten["max_tokens"] = candidate.max_tokens
    return orjson.dumps(rewritten)


def _count_engine_body(body: Body, candidate: Candidate, cache_salt: str) -> bytes:
    wanted = {key: value for key, value in body.items() if key not in TOLERATED}
    return uncharged_engine_body(wanted, candidate, cache_salt)


def _error_event(error: SpratError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(anthropic_error(error)) + b"\n\n"


def _block(value: Any, name: str) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    check = _BLOCK_KINDS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise fail(f"{name}.type", f"one of {', '.join(_BLOCK_KINDS)}: only text is read here")
    check(value, name)


def _object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise fail(name, "an object", "invalid_type")
    _ARGUMENTS(value, name)


def _no_string(value: Any) -> bool:
    return not isinstance(value, str)


_ARGUMENTS = bounded(2**20, 24)
_TEXT = object_of(
    {"type": one_of("text"), "text": string, "citations": only_empty, "cache_control": cache_control},
    ("type", "text"),
)
_TEXTS = either(string, list_of(_TEXT, 0, MAX_BLOCKS), _no_string)
_BLOCK_KINDS: dict[str, Check] = {
    "text": _TEXT,
    "tool_use": object_of(
        {
            "type": one_of("tool_use"),
            "id": text(512),
            "name": symbol,
            "input": described(_object, {"type": "object"}),
            "caller": bounded(1024, 4),  # {type: direct}: who called, of which there is one
            "cache_control": cache_control,
        },
        ("type", "id", "name", "input"),
    ),
    "tool_result": object_of(
        {
            "type": one_of("tool_result"),
            "tool_use_id": text(512),
            "content": _TEXTS,
            "is_error": boolean,
            "cache_control": cache_control,
        },
        ("type", "tool_use_id"),
    ),
    # Thoughts of an answer that comes back in the next question.
    "thinking": object_of(
        {"type": one_of("thinking"), "thinking": string, "signature": string}, ("type", "thinking")
    ),
    "redacted_thinking": object_of({"type": one_of("redacted_thinking"), "data": string}, ("type", "data")),
}
_BLOCKS = list_of(
    described(_block, {"anyOf": [schema_of(each) for each in _BLOCK_KINDS.values()]}), 0, MAX_BLOCKS
)
_MESSAGE = object_of(
    {"role": one_of("user", "assistant"), "content": either(string, _BLOCKS, _no_string)},
    ("role", "content"),
)
_OUTPUT_CONFIG = object_of(
    {
        "format": object_of({"type": one_of("json_schema"), "schema": json_schema}, ("type", "schema")),
        "effort": one_of("low", "medium", "high", "xhigh", "max"),
    }
)
_THINKING = object_of(
    {
        "type": one_of("enabled", "disabled", "adaptive"),
        "budget_tokens": integer(1024, MAX_OUTPUT_TOKENS),
        "display": one_of("summarized", "omitted"),
    },
    ("type",),
)

COUNT_REQUIRED = ("model", "messages")
MESSAGE_REQUIRED = ("model", "messages", "max_tokens")
COUNT_FIELDS: dict[str, Check] = TOLERATED | {
    "model": text(128),
    "messages": list_of(_MESSAGE, 1, MAX_MESSAGES),
    "system": _TEXTS,
    "tools": anthropic_tools,
    "tool_choice": anthropic_tool_choice,
    "output_config": _OUTPUT_CONFIG,
    "thinking": _THINKING,
}
MESSAGE_FIELDS: dict[str, Check] = COUNT_FIELDS | {
    "max_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "stop_sequences": list_of(text(256), 0, MAX_STOPS),
    "stream": boolean,
    "temperature": number(0, 1),
    "top_p": number(0.0001, 1),
    "top_k": integer(0, 100_000),
}

NAMES = EventNames(
    reports=named("message_delta"),
    ends=named("message_stop"),
    fails=named("error"),
    outputs=named("content_block_delta"),
    usage_of=message_usage,
)

MESSAGES = Endpoint(
    path="/v1/messages",
    fields=MESSAGE_FIELDS,
    required=MESSAGE_REQUIRED,
    parse=message_body,
    features=message_features,
    engine_body=_engine_body,
    usage_of=message_usage,
    stream=partial(NamedEventStream, NAMES),
    error_body=anthropic_error,
    error_event=_error_event,
    drafts=PlainDrafts(_engine_body, expected_of, draft_of, draft_of_events),
)
COUNT_TOKENS = Endpoint(
    path="/v1/messages/count_tokens",
    fields=COUNT_FIELDS,
    required=COUNT_REQUIRED,
    parse=count_body,
    features=count_features,
    engine_body=_count_engine_body,
    usage_of=no_usage,
    error_body=anthropic_error,
)
