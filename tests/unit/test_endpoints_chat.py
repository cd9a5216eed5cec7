"""`/v1/chat/completions` and `/v1/completions`: what a client may send, and what the engine then gets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import InvalidRequest
from deployments.gateway.endpoints.chat import chat_body
from deployments.gateway.endpoints.completions import completion_body
from deployments.gateway.endpoints.generation import engine_body
from tests.builders import candidate

GOOD: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}}
]

QUESTION_AND_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather?"},
    # An answer of vLLM as the official client sends it back.
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
]


def parse(**changes: Any) -> dict[str, Any]:
    return chat_body(orjson.dumps(GOOD | changes))


SCHEMA = "response_format.json_schema.schema"


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
        {"service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "modalities": ["text"]},
        {"reasoning_effort": "low", "stop_token_ids": [1], "bad_words": ["no"], "ignore_eos": True},
        {"messages": [*QUESTION_AND_CALL, {"role": "tool", "tool_call_id": "c", "content": "sunny"}]},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
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
        ({"response_format": schema_format({"a": "x" * 70_000})}, SCHEMA),
        ({"response_format": schema_format(nested(20))}, SCHEMA),
        ({"response_format": schema_format({"pattern": "a" * 300})}, SCHEMA),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x", "schema": {}}}},
            "response_format.json_schema",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "exec": 1}}]}, "tools[0].function"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"bad_words": ["x"] * 1001}, "bad_words"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}]},
            "tools[0].function.parameters",
        ),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"response_format": schema_format({"patternProperties": {"a" * 300: {}}})}, SCHEMA),
        ({"response_format": schema_format({"enum": list(range(300))})}, SCHEMA),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "", "x": 1}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function",
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
        metadata={"task": "classify"},
        user="me",
        service_tier="auto",
        prompt_cache_key="k",
        modalities=["text"],
        store=False,
        stream=True,
        max_completion_tokens=9,
        temperature=None,
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


def test_notes_of_litellm_do_not_reach_the_engine() -> None:
    notes = {"refusal": None, "reasoning": None}
    answer = {"role": "assistant", "content": "yes", "provider_specific_fields": notes}

    body = parse(messages=[*GOOD["messages"], answer])

    assert body["messages"][1] == {"role": "assistant", "content": "yes"}
