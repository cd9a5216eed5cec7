"""`/v1/embeddings`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import EngineFailed, InvalidRequest
from cluster.types import RequestKind, Usage
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.endpoints.embeddings import EMBEDDINGS
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.tokenization import DETOKENIZE, TOKENIZE
from tests.builders import candidate


def sent(endpoint: Endpoint, body: dict[str, Any]) -> Any:
    return orjson.loads(endpoint.engine_body(endpoint.parse(orjson.dumps(body)), candidate(), "salt"))


def test_texts_are_embedded_under_our_salt() -> None:
    body = {"model": "auto", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 64, "user": "u"}

    assert sent(EMBEDDINGS, body) == {
        "model": "small-base",
        "input": ["a", "b"],
        "encoding_format": "base64",
        "dimensions": 64,
        "cache_salt": "salt",
    }
    features = EMBEDDINGS.features(body, None)
    assert (features.kind, features.prompt_tokens_estimate, features.max_tokens) == (RequestKind.EMBED, 2, 0)
    assert EMBEDDINGS.usage_of(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 0}}') == Usage(3, 0)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"messages": []}, "messages"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
        ({"dimensions": 0}, "dimensions"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_is_no_text_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EMBEDDINGS.parse(orjson.dumps({"model": "auto", "input": "a"} | changes))

    assert caught.value.param == param


def test_tokenizing_is_free_and_needs_no_salt() -> None:
    chat = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": None}

    assert sent(TOKENIZE, chat) == {"model": "small-base", "messages": chat["messages"]}
    assert sent(DETOKENIZE, {"model": "auto", "tokens": [1, 2]}) == {"model": "small-base", "tokens": [1, 2]}
    for endpoint, body in ((TOKENIZE, chat), (DETOKENIZE, {"model": "auto", "tokens": [1]})):
        features = endpoint.features(body, None)
        assert (features.kind, features.tokens_at_most(0)) == (RequestKind.TOKENIZE, 0)
        assert endpoint.usage_of(b'{"count": 1}') == Usage(0, 0)
        with pytest.raises(EngineFailed):
            endpoint.usage_of(b"no")


@pytest.mark.parametrize(
    "body",
    [
        {"model": "auto"},
        {"model": "auto", "prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"model": "auto", "prompt": "a", "chat_template": "{{x}}"},
        {"model": "auto", "prompt": "a", "chat_template_kwargs": {}},
    ],
)
def test_tokenizing_takes_a_prompt_or_messages_and_no_template(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        TOKENIZE.parse(orjson.dumps(body))


def test_the_aliases_lead_to_the_engines_own_path() -> None:
    assert ENDPOINTS["/v1/tokenize"].path == "/tokenize"
    assert ENDPOINTS["/v1/detokenize"].path == "/detokenize"
