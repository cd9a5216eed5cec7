"""`/v1/messages`: Anthropic's dialect, and what vLLM then gets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import (
    AtCapacity,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    NoReplica,
    SpratError,
    UnknownModel,
)
from cluster.types import Usage
from deployments.gateway.endpoints.messages import COUNT_TOKENS, MESSAGES
from tests.builders import candidate

GOOD: dict[str, Any] = {
    "model": "auto",
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "How is the weather?"}],
}
TOOL: dict[str, Any] = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look.", "citations": None},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"city": "Bern"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "tool_result", "tool_use_id": "u", "content": "no", "is_error": True},
        ],
    },
]


def parse(**changes: Any) -> dict[str, Any]:
    return MESSAGES.parse(orjson.dumps(GOOD | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"system": "Be brief.", "temperature": 1, "top_p": 0.5, "top_k": 3, "stop_sequences": ["x"]},
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"messages": CONVERSATION, "tools": [TOOL], "tool_choice": {"type": "auto"}},
        {"tools": [TOOL | {"type": "custom"}], "tool_choice": {"type": "tool", "name": "f"}},
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        {
            "stream": True,
            "metadata": {"user_id": "u"},
            "service_tier": "auto",
            "thinking": {"type": "disabled"},
        },
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ],
)
def test_what_clients_use_passes(changes: dict[str, Any]) -> None:
    assert parse(**changes)["model"] == "auto"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_addition", "tool": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"stop_sequences": ["x"] * 5}, "stop_sequences"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"thinking": {"type": "enabled", "budget_tokens": 3}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
    ],
)
def test_everything_else_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**changes)

    assert caught.value.param == param


def test_the_engine_gets_our_model_limit_and_salt_and_nobodys_metadata() -> None:
    body = parse(
        metadata={"user_id": "u"}, service_tier="auto", stream=True, cache_control={"type": "ephemeral"}
    )

    sent = orjson.loads(MESSAGES.engine_body(body, candidate(max_tokens=9), "salt"))

    assert sent == {
        "model": "small-base",
        "max_tokens": 9,
        "messages": GOOD["messages"],
        "stream": True,
        "cache_salt": "salt",
    }


def test_cached_prompt_tokens_are_prompt_tokens() -> None:
    usage = {"input_tokens": 5, "cache_read_input_tokens": 128, "cache_creation_input_tokens": None}
    answer = orjson.dumps({"usage": usage | {"output_tokens": 3}})

    assert MESSAGES.usage_of(answer) == Usage(133, 3)
    for raw in (b"{}", b"[]", b"no", b'{"usage": {"input_tokens": 1}}'):
        with pytest.raises(EngineFailed):
            MESSAGES.usage_of(raw)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (UnknownModel("x"), "not_found_error"),
        (AtCapacity("x"), "rate_limit_error"),
        (NoReplica("x"), "overloaded_error"),
        (EngineFailed("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_shape(error: SpratError, kind: str) -> None:
    shape = {"type": "error", "error": {"type": kind, "message": "x"}}

    assert MESSAGES.error_body(error) == COUNT_TOKENS.error_body(error) == shape
    assert MESSAGES.error_event is not None
    assert MESSAGES.error_event(error) == b"event: error\ndata: " + orjson.dumps(shape) + b"\n\n"


def test_a_prompt_that_is_too_long_is_said_in_anthropics_words() -> None:
    message = MESSAGES.error_body(ContextLengthExceeded("It holds 5."))["error"]["message"]

    assert message == "prompt is too long: It holds 5."


def test_counting_tokens_costs_nothing() -> None:
    body = COUNT_TOKENS.parse(orjson.dumps({"model": "auto", "messages": CONVERSATION, "tools": [TOOL]}))

    sent = orjson.loads(COUNT_TOKENS.engine_body(body, candidate(), "salt"))

    assert sent == {"model": "small-base", "messages": CONVERSATION, "tools": [TOOL]}
    assert COUNT_TOKENS.usage_of(b'{"input_tokens": 35}') == Usage(0, 0)
    with pytest.raises(InvalidRequest):
        COUNT_TOKENS.parse(orjson.dumps(GOOD))
