"""The closed schema: what a client may send, and what the engine then gets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import InvalidRequest
from deployments.gateway.body import chat_body, completion_body, engine_body
from tests.builders import candidate

GOOD: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


def parse(**changes: Any) -> dict[str, Any]:
    return chat_body(orjson.dumps(GOOD | changes))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.2, "top_p": 1, "n": 2, "stop": ["a", "b"], "seed": -1, "logit_bias": {"5": -100}},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"max_tokens": 5, "min_tokens": 5, "user": "u", "store": False, "metadata": {"task": "classify"}},
        {"response_format": schema_format({"type": "object"})},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto"},
        {"temperature": None, "logprobs": True, "top_logprobs": 20},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    ],
)
def test_what_clients_use_passes(changes: dict[str, Any]) -> None:
    assert parse(**changes)["model"] == "auto"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"best_of": 5}, "best_of"),
        ({"chat_template": "{{x}}"}, "chat_template"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"priority": 1}, "priority"),
        ({"api_base": "http://x"}, "api_base"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "messages[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
                ]
            },
            "messages[0].content",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ({"metadata": {"task": 5}}, "metadata.task"),
        ({"response_format": schema_format({"a": "x" * 70_000})}, "response_format"),
        ({"response_format": schema_format(nested(20))}, "response_format"),
        ({"response_format": schema_format({"pattern": "a" * 300})}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "exec": 1}}]}, "tools[0].function"),
        ({"store": True}, "store"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"response_format": schema_format({"patternProperties": {"a" * 300: {}}})}, "response_format"),
        ({"response_format": schema_format({"enum": list(range(300))})}, "response_format"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "", "x": 1}}],
                    }
                ]
            },
            "messages[0].tool_calls.function",
        ),
        ({"metadata": nested(40)}, None),
    ],
)
def test_everything_else_is_refused_by_name(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**changes)

    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b'{"model":"a"}', b'{"model": NaN}', b"\xff\xfe"])
def test_no_json_no_service(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        chat_body(raw)


def test_completions_take_prompts_only() -> None:
    assert completion_body(b'{"model":"auto","prompt":["a","b"]}')["prompt"] == ["a", "b"]
    for bad in (
        b'{"model":"auto","prompt":[1,2]}',
        b'{"model":"auto","prompt":"a","echo":true}',
        b'{"model":"auto","prompt":["a","b","c"],"n":8}',
    ):
        with pytest.raises(InvalidRequest):
            completion_body(bad)


def test_the_engine_gets_our_model_limit_and_salt_and_no_client_metadata() -> None:
    body = parse(
        metadata={"task": "classify"}, user="me", stream=True, max_completion_tokens=9, temperature=None
    )

    sent = orjson.loads(engine_body(body, candidate(adapter="intent@2", max_tokens=9), "salt"))

    assert sent == {
        "model": "intent@2",
        "messages": GOOD["messages"],
        "stream": True,
        "max_tokens": 9,
        "cache_salt": "salt",
        "stream_options": {"include_usage": True},
    }
