"""Every field of every route with values around its caps and far beyond (THREATS.md section 5, row H).

A body is accepted or refused with InvalidRequest, never another error; and what an engine gets holds no
field that belongs to us.
"""

from __future__ import annotations

import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.types import RequestFeatures
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.endpoints.chat import CHAT_FIELDS
from deployments.gateway.endpoints.completions import COMPLETION_FIELDS
from deployments.gateway.endpoints.embeddings import EMBEDDING_FIELDS
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.messages import COUNT_FIELDS, MESSAGE_FIELDS
from deployments.gateway.endpoints.responses import RESPONSE_FIELDS
from deployments.gateway.endpoints.tokenization import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from tests.builders import candidate

QUESTION = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, tuple[set[str], dict[str, Any]]] = {
    "/v1/chat/completions": (set(CHAT_FIELDS), {"model": "auto", "messages": QUESTION}),
    "/v1/completions": (set(COMPLETION_FIELDS), {"model": "auto", "prompt": "hi"}),
    "/v1/responses": (set(RESPONSE_FIELDS), {"model": "auto", "input": "hi"}),
    "/v1/messages": (set(MESSAGE_FIELDS), {"model": "auto", "messages": QUESTION, "max_tokens": 9}),
    "/v1/messages/count_tokens": (set(COUNT_FIELDS), {"model": "auto", "messages": QUESTION}),
    "/v1/embeddings": (set(EMBEDDING_FIELDS), {"model": "auto", "input": "hi"}),
    "/tokenize": (set(TOKENIZE_FIELDS), {"model": "auto", "prompt": "hi"}),
    "/detokenize": (set(DETOKENIZE_FIELDS), {"model": "auto", "tokens": [1]}),
}

ENGINE_FIELDS = [
    *("chat_template", "chat_template_kwargs", "prompt_embeds", "kv_transfer_params", "ec_transfer_params"),
    *("mm_processor_kwargs", "media_io_kwargs", "vllm_xargs", "cache_salt", "priority", "request_id"),
    *("best_of", "prompt_logprobs", "echo", "use_beam_search", "structured_outputs", "guided_json"),
    *("lora_request", "api_base", "base_url", "truncate_prompt_tokens", "session_id", "watermarking"),
    *("previous_input_messages", "enable_response_messages", "return_token_ids", "documents", "suffix"),
]
"""Of vLLM and of other gateways: no client may set them."""

EDGES: list[Any] = [
    *(None, True, False, "", "x", [], {}, [[]], [None], [{}], {"a": None}, {"type": []}, {"type": {}}),
    *(0, -1, 1, 2, 4, 5, 8, 9, 16, 17, 20, 21, 2**31, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.0, -0.0, 1e308, -1e308, 5e-324, 1.0000001, 2.0000001),
    *("auto", "required", "none", "json_schema", "\u0000", "\ud7ff", "é" * 300, "x" * 70_000),
    *(["x"] * count for count in (4, 5, 16, 17, 128, 129, 1000, 1001)),
    *([1] * count for count in (128, 129, 1024, 1025)),
    {str(number): 0 for number in range(1025)},
    [{"role": "user", "content": [{"type": "text", "text": 3}]}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"type": {"type": 3}}}}}],
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"anyOf": [True, [], 3, {"enum": 3}]}}},
    {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "http://10.0.0.1/schema"}}},
]

TEXTS = st.text(max_size=20) | st.sampled_from(
    ["type", "role", "content", "text", "function", "name", "user", "tool_use", "tool_result", "message"]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def outcome(endpoint: Endpoint, raw: bytes) -> dict[str, Any] | None:
    """What an engine would get; None where the client gets 400."""
    try:
        body = endpoint.parse(raw)
    except InvalidRequest:
        return None
    assert isinstance(endpoint.features(body, None), RequestFeatures)
    sent: dict[str, Any] = orjson.loads(endpoint.engine_body(body, candidate(max_tokens=7), "our salt"))
    assert sent["model"] == "small-base"
    assert sent.get("cache_salt", "our salt") == "our salt"
    assert {"metadata", "user", "store", "max_completion_tokens"}.isdisjoint(
        {key for key, value in sent.items() if value is not False}
    )
    limits = {key: sent[key] for key in ("max_tokens", "max_output_tokens") if key in sent}
    assert set(limits.values()) <= {7}
    return sent


@pytest.mark.parametrize("path", ROUTES)
@given(data=st.data())
def test_any_value_in_any_field(path: str, data: st.DataObject) -> None:
    fields, good = ROUTES[path]
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), st.sampled_from(EDGES) | ANY_JSON))

    outcome(ENDPOINTS[path], orjson.dumps(good | changed))


@pytest.mark.parametrize("path", ROUTES)
def test_each_field_with_each_edge(path: str) -> None:
    fields, good = ROUTES[path]

    for field in fields:
        for value in EDGES:
            outcome(ENDPOINTS[path], orjson.dumps(good | {field: value}))


@pytest.mark.parametrize("path", ROUTES)
@given(name=st.sampled_from(ENGINE_FIELDS) | st.text(string.printable, min_size=1), value=ANY_JSON)
def test_an_unknown_field_is_refused_by_name(path: str, name: str, value: Any) -> None:
    fields, good = ROUTES[path]
    if name in fields and (name, value) != ("echo", False):
        return
    sent = outcome(ENDPOINTS[path], orjson.dumps(good | {name: value}))

    if name not in fields:
        assert sent is None


@pytest.mark.parametrize("path", ROUTES)
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(path: str, raw: bytes) -> None:
    outcome(ENDPOINTS[path], raw)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "auto", "model": 3}',  # the last of two keys counts
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"seed": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
    ],
)
def test_json_that_parsers_disagree_on(path: str, raw: bytes) -> None:
    assert outcome(ENDPOINTS[path], raw) is None
