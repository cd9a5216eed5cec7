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
from deployments.gateway.endpoints.generation import MAX_OUTPUT_TOKENS, passed_on, reasoning_effort
from deployments.gateway.endpoints.json_schema import json_schema
from deployments.gateway.endpoints.plain_drafts import PlainDrafts
from deployments.gateway.endpoints.response_drafts import draft_of, draft_of_events, expected_of
from deployments.gateway.endpoints.tolerated import RESPONSES as TOLERATED
from deployments.gateway.endpoints.tools import response_tool_choice, response_tools

MAX_ITEMS = 2048
SOME_JSON = bounded(2**20, 16)


def response_body(raw: bytes) -> dict[str, Any]:
    body = closed_object(raw, RESPONSE_FIELDS, RESPONSE_REQUIRED)
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

    return described(check, {"type": "null"})


def _item(value: Any, name: str) -> None:
    kind = (value.get("type") or "message") if isinstance(value, dict) else None
    check = _ITEM_KINDS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise fail(
            f"{name}.type", f"one of {', '.join(_ITEM_KINDS)}: nothing is stored, and only text is read"
        )
    check(value, name)


def _format(value: Any, name: str) -> None:
    _FORMAT(value, name)
    if value["type"] == "json_schema" and (value.get("schema") is None or value.get("name") is None):
        raise fail(name, "given with name and schema where its type is json_schema")


_PART = object_of(
    {
        "type": one_of("input_text", "output_text"),
        "text": string,
        "annotations": only_empty,
        "logprobs": SOME_JSON,
    },
    ("type", "text"),
)
_CONTENT = either(string, list_of(_PART, 0, MAX_ITEMS), lambda value: not isinstance(value, str))
_STATUS = one_of("in_progress", "completed", "incomplete")
_ITEM_KINDS: dict[str, Check] = {
    "message": object_of(
        {
            "type": one_of("message"),
            "role": one_of("user", "assistant", "system", "developer"),
            "content": _CONTENT,
            "id": text(512),
            "status": _STATUS,
            "phase": one_of("commentary", "final_answer"),
        },
        ("role", "content"),
    ),
    "function_call": object_of(
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
            "async_": only_empty,  # the same, by the name that OpenAI's Python client gives it
        },
        ("type", "call_id", "name", "arguments"),
    ),
    "function_call_output": object_of(
        {
            "type": one_of("function_call_output"),
            "id": text(512),
            "call_id": text(512),
            "output": _CONTENT,
            "status": _STATUS,
        },
        ("type", "call_id", "output"),
    ),
    "reasoning": object_of(
        {
            "type": one_of("reasoning"),
            "id": text(512),
            "summary": SOME_JSON,
            "content": SOME_JSON,
            "encrypted_content": string,
            "status": _STATUS,
        },
        ("type", "summary"),
    ),
}
_ITEMS = list_of(
    described(_item, {"anyOf": [schema_of(each) for each in _ITEM_KINDS.values()]}), 1, MAX_ITEMS
)
_FORMAT = object_of(
    {
        "type": one_of("text", "json_object", "json_schema"),
        "name": symbol,
        "description": string,
        "schema": json_schema,
        "strict": boolean,
    },
    ("type",),
)

RESPONSE_REQUIRED = ("model", "input")
RESPONSE_FIELDS: dict[str, Check] = TOLERATED | {
    "model": text(128),
    "input": either(text(2**31), _ITEMS, lambda value: not isinstance(value, str)),
    "instructions": string,
    "max_output_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0.0001, 1),
    "top_logprobs": integer(0, 20),
    "stream": boolean,
    "tools": response_tools,
    "tool_choice": response_tool_choice,
    "parallel_tool_calls": boolean,
    "text": object_of({"format": described(_format, schema_of(_FORMAT)), "verbosity": one_of("medium")}),
    "reasoning": object_of({"effort": reasoning_effort, "summary": one_of("auto")}),
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
    fields=RESPONSE_FIELDS,
    required=RESPONSE_REQUIRED,
    parse=response_body,
    features=response_features,
    engine_body=_engine_body,
    usage_of=response_usage,
    stream=partial(NamedEventStream, NAMES),
    error_event=_error_event,
    drafts=PlainDrafts(_engine_body, expected_of, draft_of, draft_of_events),
)
