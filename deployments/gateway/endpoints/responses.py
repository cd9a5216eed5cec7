"""`POST /v1/responses`, stateless: nothing is stored, so nothing can be referred to.

vLLM 0.32 differs from OpenAI in what no SDK minds: a stream that ran into its limit ends with
`response.completed` whose status is `incomplete`, and a tool call that was cut off by the limit is missing
from the output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from cluster.errors import EngineFailed, InvalidRequest, SpratError
from cluster.router.features import response_features
from cluster.types import Candidate, Usage
from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    bounded,
    closed,
    closed_object,
    fail,
    integer,
    list_of,
    number,
    one_of,
    only_empty,
    string,
    symbol,
    text,
)
from deployments.gateway.endpoints.endpoint import Body, Endpoint
from deployments.gateway.endpoints.event_stream import EventNames, NamedEventStream, named
from deployments.gateway.endpoints.generation import MAX_OUTPUT_TOKENS, passed_on
from deployments.gateway.endpoints.json_schema import json_schema
from deployments.gateway.endpoints.tolerated import RESPONSES as TOLERATED
from deployments.gateway.endpoints.tools import response_tool_choice, response_tools

MAX_ITEMS = 2048
SOME_JSON = bounded(2**20, 16)


def response_body(raw: bytes) -> dict[str, Any]:
    body = closed_object(raw, RESPONSE_FIELDS, ("model", "input"))
    if body.get("tool_choice") not in (None, "none", "auto") and not body.get("tools"):
        raise InvalidRequest("tool_choice needs tools.", param="tool_choice", code="invalid_value")
    return body


def response_usage(raw: bytes) -> Usage:
    """From a whole answer, or from the data of the event that ends a stream. Raises EngineFailed."""
    try:
        answer = orjson.loads(raw)
        usage = answer.get("response", answer)["usage"]
        return Usage(prompt_tokens=int(usage["input_tokens"]), output_tokens=int(usage["output_tokens"]))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineFailed("The engine sent an answer that cannot be read.") from error


def _engine_body(body: Body, candidate: Candidate, cache_salt: str) -> bytes:
    rewritten = passed_on(body, candidate, cache_salt, TOLERATED.keys())
    rewritten["max_output_tokens"] = candidate.max_tokens
    rewritten["store"] = False
    return orjson.dumps(rewritten)


def _error_event(error: SpratError) -> bytes:
    """OpenAI's SDK raises for an event with `error`; others read the fields beside it."""
    shown = error.to_openai()
    fields = shown["error"]
    event = {
        "type": "error",
        "code": fields["code"],
        "message": fields["message"],
        "param": fields["param"],
        "sequence_number": 0,
    }
    return b"event: error\ndata: " + orjson.dumps(event | shown) + b"\n\n"


def _stateless(what: str) -> Check:
    def check(_value: Any, name: str) -> None:
        raise InvalidRequest(
            f"{name} is not supported here: {what}", param=name, code="unsupported_parameter"
        )

    return check


def _input(value: Any, name: str) -> None:
    if isinstance(value, str) and value:
        return
    if not isinstance(value, list):
        raise fail(name, "a non-empty string or a list of items", "invalid_type")
    _ITEMS(value, name)


def _item(value: Any, name: str) -> None:
    kind = (value.get("type") or "message") if isinstance(value, dict) else None
    fields = _ITEM_KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise fail(
            f"{name}.type", f"one of {', '.join(_ITEM_KINDS)}: nothing is stored, and only text is read"
        )
    closed(value, name, fields[0], fields[1])


def _content(value: Any, name: str) -> None:
    if not isinstance(value, str):
        _PARTS(value, name)


def _part(value: Any, name: str) -> None:
    closed(value, name, _PART_FIELDS, ("type", "text"))


def _text_config(value: Any, name: str) -> None:
    closed(value, name, {"format": _format, "verbosity": one_of("medium")})


def _format(value: Any, name: str) -> None:
    closed(value, name, _FORMAT_FIELDS, ("type",))
    if value["type"] == "json_schema" and (value.get("schema") is None or value.get("name") is None):
        raise fail(name, "given with name and schema where its type is json_schema")


def _reasoning(value: Any, name: str) -> None:
    efforts = one_of("none", "minimal", "low", "medium", "high", "xhigh")
    closed(value, name, {"effort": efforts, "summary": one_of("auto")})


_PART_FIELDS: dict[str, Check] = {
    "type": one_of("input_text", "output_text"),
    "text": string,
    "annotations": only_empty,
    "logprobs": SOME_JSON,
}
_PARTS = list_of(_part, 0, MAX_ITEMS)
_STATUS = one_of("in_progress", "completed", "incomplete")
_ITEM_KINDS: dict[str, tuple[dict[str, Check], tuple[str, ...]]] = {
    "message": (
        {
            "type": one_of("message"),
            "role": one_of("user", "assistant", "system", "developer"),
            "content": _content,
            "id": text(512),
            "status": _STATUS,
            "phase": one_of("commentary", "final_answer"),
        },
        ("role", "content"),
    ),
    "function_call": (
        {
            "type": one_of("function_call"),
            "id": text(512),
            "call_id": text(512),
            "name": symbol,
            "arguments": string,
            "status": _STATUS,
            # An engine leaves them null; with a value they belong to tools that there are none of.
            "caller": only_empty,
            "namespace": only_empty,
            "async": only_empty,
        },
        ("call_id", "name", "arguments"),
    ),
    "function_call_output": (
        {
            "type": one_of("function_call_output"),
            "id": text(512),
            "call_id": text(512),
            "output": _content,
            "status": _STATUS,
        },
        ("call_id", "output"),
    ),
    "reasoning": (
        {
            "type": one_of("reasoning"),
            "id": text(512),
            "summary": SOME_JSON,
            "content": SOME_JSON,
            "encrypted_content": string,
            "status": _STATUS,
        },
        ("summary",),
    ),
}
_ITEMS = list_of(_item, 1, MAX_ITEMS)

_FORMAT_FIELDS: dict[str, Check] = {
    "type": one_of("text", "json_object", "json_schema"),
    "name": symbol,
    "description": string,
    "schema": json_schema,
    "strict": boolean,
}

RESPONSE_FIELDS: dict[str, Check] = TOLERATED | {
    "model": text(128),
    "input": _input,
    "instructions": string,
    "max_output_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0.0001, 1),
    "top_logprobs": integer(0, 20),
    "stream": boolean,
    "tools": response_tools,
    "tool_choice": response_tool_choice,
    "parallel_tool_calls": boolean,
    "text": _text_config,
    "reasoning": _reasoning,
    "include": list_of(one_of("reasoning.encrypted_content", "message.output_text.logprobs"), 0, 8),
    "previous_response_id": _stateless("send the earlier items in input."),
    "conversation": _stateless("send the earlier items in input."),
    "prompt": _stateless("no prompts are stored; use instructions and input."),
}

NAMES = EventNames(
    reports=named("response.completed", "response.incomplete"),
    ends=named("response.completed", "response.incomplete"),
    fails=named("error", "response.failed"),
    outputs=named(
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_text.delta",
    ),
    usage_of=response_usage,
)

RESPONSES = Endpoint(
    path="/v1/responses",
    parse=response_body,
    features=response_features,
    engine_body=_engine_body,
    usage_of=response_usage,
    stream=partial(NamedEventStream, NAMES),
    error_event=_error_event,
)
