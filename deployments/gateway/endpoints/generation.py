"""What the generating routes share: caps, sampling fields, and what the engine gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidRequest
from cluster.types import Candidate
from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    closed_object,
    described,
    either,
    fail,
    integer,
    is_list,
    list_of,
    number,
    object_of,
    one_of,
    schema_of,
    string,
    symbol,
    text,
)
from deployments.gateway.endpoints.json_schema import json_schema
from deployments.gateway.endpoints.tolerated import CHAT, OPENAI

MAX_OUTPUT_TOKENS = 1_000_000
MAX_SEQUENCES = 16
MAX_STOPS = 4  # the most that vLLM takes; the threat model would allow 8
MAX_TOKEN_ID = 2**32 - 1

OURS = frozenset({"stream_options", "max_completion_tokens"})
"""Rewritten by `engine_body`."""


def generation_body(raw: bytes, fields: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
    """`closed_object`, with the rules that join several fields."""
    body = closed_object(raw, fields, required)
    if body.get("stream_options") is not None and not body.get("stream"):
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    _check_token_bounds(body)
    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [None]
    if len(prompts) * (body.get("n") or 1) > MAX_SEQUENCES:
        raise InvalidRequest(
            f"prompts x n may be at most {MAX_SEQUENCES} answers in one call.",
            param="n",
            code="invalid_value",
        )
    return body


def passed_on(
    body: Mapping[str, Any], candidate: Candidate, cache_salt: str, left_out: Collection[str]
) -> dict[str, Any]:
    """The body for an engine: the candidate's model, our salt, nothing null, nothing of `left_out`."""
    rewritten = {key: value for key, value in body.items() if value is not None and key not in left_out}
    rewritten["model"] = candidate.model
    rewritten["cache_salt"] = cache_salt
    return rewritten


def firm_body(body: Mapping[str, Any], candidate: Candidate, cache_salt: str) -> dict[str, Any]:
    """What the engine gets on OpenAI's completion routes: a firm output limit, and usage always."""
    rewritten = passed_on(body, candidate, cache_salt, _LEFT_OUT)
    rewritten["max_tokens"] = candidate.max_tokens
    if body.get("stream"):
        rewritten["stream_options"] = {"include_usage": True}
    return rewritten


def engine_body(body: Mapping[str, Any], candidate: Candidate, cache_salt: str) -> bytes:
    """`firm_body` as bytes."""
    return orjson.dumps(firm_body(body, candidate, cache_salt))


def wants_usage(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def text_or_list_of_texts(max_length: int, max_count: int) -> Check:
    return either(text(max_length), list_of(text(max_length), 1, max_count), is_list)


def _logit_bias(value: Any, name: str) -> None:
    if not isinstance(value, dict) or len(value) > 1024:
        raise fail(name, "an object of at most 1024 token ids")
    for key, each in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise fail(name, "an object whose keys are token ids")
        _BIAS(each, name)


def _response_format(value: Any, name: str) -> None:
    _FORMAT(value, name)
    if (value["type"] == "json_schema") != (value.get("json_schema") is not None):
        raise fail(f"{name}.json_schema", "given with type json_schema, and only then")


def _check_token_bounds(body: Mapping[str, Any]) -> None:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    least = body.get("min_tokens")
    if limit is not None and least is not None and least > limit:
        raise InvalidRequest(
            "min_tokens must not be above max_tokens.", param="min_tokens", code="invalid_value"
        )


_BIAS = number(-100, 100)
_NAMED_SCHEMA = object_of(
    {"name": symbol, "description": string, "schema": json_schema, "strict": boolean}, ("name", "schema")
)
_FORMAT = object_of(
    {"type": one_of("text", "json_object", "json_schema"), "json_schema": _NAMED_SCHEMA}, ("type",)
)

reasoning_effort = one_of("none", "minimal", "low", "medium", "high", "xhigh")

SAMPLING_FIELDS: dict[str, Check] = OPENAI | {
    "model": text(128),
    "max_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "min_tokens": integer(0, MAX_OUTPUT_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0.0001, 1),
    "top_k": integer(-1, 100_000),
    "min_p": number(0, 1),
    "n": integer(1, 8),
    "stop": text_or_list_of_texts(256, MAX_STOPS),
    "stop_token_ids": list_of(integer(0, MAX_TOKEN_ID), 0, 128),
    "allowed_token_ids": list_of(integer(0, MAX_TOKEN_ID), 1, 1024),
    "bad_words": list_of(text(128), 0, 1000),
    "ignore_eos": boolean,  # load tests ask for exact lengths; the limit holds all the same
    "stream": boolean,
    "stream_options": object_of({"include_usage": boolean, "include_obfuscation": boolean}),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 10),
    "seed": integer(-(2**63), 2**63 - 1),
    "logit_bias": described(
        _logit_bias,
        {
            "type": "object",
            "maxProperties": 1024,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": schema_of(_BIAS),
        },
    ),
    "response_format": described(_response_format, schema_of(_FORMAT)),
}

_LEFT_OUT = OURS | CHAT.keys()
