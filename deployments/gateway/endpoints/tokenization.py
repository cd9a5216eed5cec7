"""`POST /tokenize` and `POST /detokenize`, as vLLM has them; also under `/v1`. They cost nothing: no model
runs. Clients bring no chat template (THREATS.md row 4)."""

from __future__ import annotations

from typing import Any

import orjson

from cluster.errors import EngineFailed, InvalidRequest
from cluster.router.features import tokenize_features
from cluster.types import Candidate, Usage
from deployments.gateway.endpoints.chat import messages
from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    closed_object,
    integer,
    list_of,
    string,
    text,
)
from deployments.gateway.endpoints.endpoint import Body, Endpoint
from deployments.gateway.endpoints.generation import MAX_TOKEN_ID
from deployments.gateway.endpoints.tools import chat_tools

MAX_TOKENS = 1_000_000


def tokenize_body(raw: bytes) -> dict[str, Any]:
    body = closed_object(raw, TOKENIZE_FIELDS, TOKENIZE_REQUIRED)
    if (body.get("prompt") is None) == (body.get("messages") is None):
        raise InvalidRequest("Give either prompt or messages.", param="prompt", code="invalid_value")
    return body


def detokenize_body(raw: bytes) -> dict[str, Any]:
    return closed_object(raw, DETOKENIZE_FIELDS, DETOKENIZE_REQUIRED)


def uncharged_engine_body(body: Body, candidate: Candidate, _cache_salt: str) -> bytes:
    """No salt: nothing of it is cached."""
    rewritten = {key: value for key, value in body.items() if value is not None}
    return orjson.dumps(rewritten | {"model": candidate.model})


def no_usage(raw: bytes) -> Usage:
    """Raises EngineFailed for what is no JSON object."""
    if not raw.startswith(b"{"):
        raise EngineFailed("The engine sent an answer that cannot be read.")
    return Usage(0, 0)


TOKENIZE_REQUIRED = ("model",)
TOKENIZE_FIELDS: dict[str, Check] = {
    "model": text(128),
    "prompt": string,
    "messages": messages,
    "tools": chat_tools,
    "add_special_tokens": boolean,
    "add_generation_prompt": boolean,
    "return_token_strs": boolean,
}
DETOKENIZE_REQUIRED = ("model", "tokens")
DETOKENIZE_FIELDS: dict[str, Check] = {
    "model": text(128),
    "tokens": list_of(integer(0, MAX_TOKEN_ID), 0, MAX_TOKENS),
}

TOKENIZE = Endpoint(
    path="/tokenize",
    fields=TOKENIZE_FIELDS,
    required=TOKENIZE_REQUIRED,
    parse=tokenize_body,
    features=tokenize_features,
    engine_body=uncharged_engine_body,
    usage_of=no_usage,
)
DETOKENIZE = Endpoint(
    path="/detokenize",
    fields=DETOKENIZE_FIELDS,
    required=DETOKENIZE_REQUIRED,
    parse=detokenize_body,
    features=tokenize_features,
    engine_body=uncharged_engine_body,
    usage_of=no_usage,
)
