"""`POST /v1/embeddings`."""

from __future__ import annotations

from typing import Any

import orjson

from cluster.errors import InvalidRequest
from cluster.router.features import embedding_features
from cluster.types import Candidate
from deployments.gateway.endpoints.checks import (
    Check,
    closed_object,
    described,
    integer,
    one_of,
    schema_of,
    text,
)
from deployments.gateway.endpoints.endpoint import Body, Endpoint
from deployments.gateway.endpoints.generation import passed_on, text_or_list_of_texts
from deployments.gateway.endpoints.openai_stream import usage_of_answer
from deployments.gateway.endpoints.tolerated import CALLER, ROUTING

MAX_INPUTS = 2048
ANY_LENGTH = 2**31


def embedding_body(raw: bytes) -> dict[str, Any]:
    return closed_object(raw, EMBEDDING_FIELDS, EMBEDDING_REQUIRED)


def _input(value: Any, name: str) -> None:
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise InvalidRequest(
            "input must be text. Token ids mean other words to every tokenizer but the one that made them; "
            "with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False.",
            param=name,
            code="invalid_type",
        )
    _TEXTS(value, name)


def _engine_body(body: Body, candidate: Candidate, cache_salt: str) -> bytes:
    return orjson.dumps(passed_on(body, candidate, cache_salt, _LEFT_OUT))


_TEXTS = text_or_list_of_texts(ANY_LENGTH, MAX_INPUTS)

EMBEDDING_REQUIRED = ("model", "input")
EMBEDDING_FIELDS: dict[str, Check] = {
    **ROUTING,
    **CALLER,
    "model": text(128),
    "input": described(_input, schema_of(_TEXTS)),
    "dimensions": integer(1, 65_536),  # the engine refuses it for models that were not trained for it
    "encoding_format": one_of("float", "base64"),
}
_LEFT_OUT = ROUTING.keys() | CALLER.keys()

EMBEDDINGS = Endpoint(
    path="/v1/embeddings",
    fields=EMBEDDING_FIELDS,
    required=EMBEDDING_REQUIRED,
    parse=embedding_body,
    features=embedding_features,
    engine_body=_engine_body,
    usage_of=usage_of_answer,
)
