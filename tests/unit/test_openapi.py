"""The API's description says what the checks do."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest

from cluster.errors import InvalidRequest
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.endpoints.checks import schema_of
from deployments.gateway.openapi import openapi
from tests.unit.test_endpoints_chat import GOOD as CHAT
from tests.unit.test_endpoints_messages import CONVERSATION
from tests.unit.test_endpoints_messages import GOOD as MESSAGE
from tests.unit.test_endpoints_responses import ITEMS

DOCUMENT = openapi(ENDPOINTS, "1.2.3", ["auto", "small"])


def validator(path: str) -> Any:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator(body)


def test_every_route_is_there_with_all_refusals() -> None:
    assert set(ENDPOINTS) < set(DOCUMENT["paths"])
    for path in ENDPOINTS:
        responses = DOCUMENT["paths"][path]["post"]["responses"]
        assert set(responses) == {
            *("200", "400", "401", "402", "404", "405", "408", "409", "413", "415", "422"),
            *("429", "499", "502", "503", "504"),
        }
        streamed = "text/event-stream" in responses["200"]["content"]
        assert streamed == (ENDPOINTS[path].stream is not None)
    orjson.dumps(DOCUMENT)


def test_models_are_named_where_they_are_known() -> None:
    for models, expected in ((["a"], {"enum": ["a"]}), ([], {"type": "string"})):
        body = openapi(ENDPOINTS, "1", models)["paths"]["/v1/messages"]["post"]["requestBody"]
        model = body["content"]["application/json"]["schema"]["properties"]["model"]
        assert model | expected == model


def test_errors_are_in_the_dialect_of_their_route() -> None:
    def of(path: str) -> str:
        content = DOCUMENT["paths"][path]["post"]["responses"]["400"]["content"]
        return str(content["application/json"]["schema"]["$ref"])

    assert of("/v1/messages").endswith("/AnthropicError")
    assert of("/v1/chat/completions").endswith("/Error")


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_field_is_described_by_a_valid_schema(path: str) -> None:
    jsonschema.Draft202012Validator.check_schema(validator(path).schema)
    assert [name for name, check in ENDPOINTS[path].fields.items() if not schema_of(check)] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"stop": "x", "n": 2, "tools": None, "logit_bias": {"5": 1}}),
        ("/v1/responses", {"model": "auto", "input": ITEMS}),
        ("/v1/messages", MESSAGE | {"messages": CONVERSATION}),
        ("/v1/embeddings", {"model": "auto", "input": ["a"]}),
        ("/v1/tokenize", {"model": "auto", "prompt": "a"}),
    ],
)
def test_what_the_checks_take_the_description_takes(path: str, body: dict[str, Any]) -> None:
    ENDPOINTS[path].parse(orjson.dumps(body))

    assert list(validator(path).iter_errors(body)) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "auto"}),
        ("/v1/chat/completions", CHAT | {"best_of": 2}),
        ("/v1/chat/completions", CHAT | {"n": 9}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "root", "content": "x"}]}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "x", "prefix": True}]}),
        ("/v1/chat/completions", CHAT | {"tool_choice": "any"}),
        ("/v1/responses", {"model": "auto", "input": [{"type": "item_reference", "id": "x"}]}),
        ("/v1/responses", {"model": "auto", "input": "x", "previous_response_id": "resp_1"}),
        ("/v1/messages", MESSAGE | {"max_tokens": None}),
        ("/v1/messages", MESSAGE | {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("/v1/embeddings", {"model": "auto", "input": [1, 2]}),
        ("/detokenize", {"model": "auto", "tokens": [-1]}),
    ],
)
def test_what_the_description_refuses_the_checks_refuse(path: str, body: dict[str, Any]) -> None:
    assert list(validator(path).iter_errors(body))
    with pytest.raises(InvalidRequest):
        ENDPOINTS[path].parse(orjson.dumps(body))
