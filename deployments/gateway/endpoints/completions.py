"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Any

from cluster.router.features import completion_features
from deployments.gateway.endpoints.checks import Check, integer, only_false
from deployments.gateway.endpoints.drafts import OpenAiDrafts
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.generation import (
    MAX_SEQUENCES,
    SAMPLING_FIELDS,
    engine_body,
    generation_body,
    text_or_list_of_texts,
)
from deployments.gateway.endpoints.openai_stream import OpenAiStream, usage_of_answer

ANY_LENGTH = 2**31
"""The body as a whole is bounded."""


def completion_body(raw: bytes) -> dict[str, Any]:
    return generation_body(raw, COMPLETION_FIELDS, COMPLETION_REQUIRED)


COMPLETION_REQUIRED = ("model", "prompt")
COMPLETION_FIELDS: dict[str, Check] = SAMPLING_FIELDS | {
    "prompt": text_or_list_of_texts(ANY_LENGTH, MAX_SEQUENCES),
    "logprobs": integer(0, 20),
    "echo": only_false,
}

COMPLETIONS = Endpoint(
    path="/v1/completions",
    fields=COMPLETION_FIELDS,
    required=COMPLETION_REQUIRED,
    parse=completion_body,
    features=completion_features,
    engine_body=engine_body,
    usage_of=usage_of_answer,
    stream=OpenAiStream,
    drafts=OpenAiDrafts(),
)
