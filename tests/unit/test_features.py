"""What the router sees of each dialect: the same conversation looks the same."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.router.features import (
    chat_features,
    completion_features,
    count_features,
    embedding_features,
    message_features,
    response_features,
    tokenize_features,
)
from cluster.types import RequestFeatures, RequestKind

SYSTEM = "You name the intent. " * 10
QUESTION = "My card does not work."
SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}}}

CHAT: dict[str, Any] = {
    "model": "auto",
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
}
RESPONSE: dict[str, Any] = {"model": "auto", "instructions": SYSTEM, "input": QUESTION}
MESSAGE: dict[str, Any] = {
    "model": "auto",
    "system": [{"type": "text", "text": SYSTEM}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
    "max_tokens": 7,
}


def of_three(chat: Any, response: Any, message: Any) -> list[RequestFeatures]:
    return [
        chat_features(CHAT | chat),
        response_features(RESPONSE | response),
        message_features(MESSAGE | message),
    ]


def test_the_dialects_agree() -> None:
    chat, response, message = of_three({"max_tokens": 7}, {"max_output_tokens": 7}, {})

    assert chat == response == message
    assert chat.system_prompt == SYSTEM
    assert (chat.turns, chat.max_tokens, chat.kind) == (1, 7, RequestKind.GENERATE)


def test_later_calls_share_all_up_to_the_last_answer() -> None:
    """Turn 2 of a loop: question, call of a tool, its result."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"card": 1}'}}
    later = of_three(
        {
            "messages": [
                *CHAT["messages"],
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "blocked " * 20},
            ]
        },
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
                {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"card": 1}'},
                {"type": "function_call_output", "call_id": "c", "output": "blocked " * 20},
            ]
        },
        {
            "messages": [
                *MESSAGE["messages"],
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "c", "name": "look", "input": {"card": 1}}],
                },
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c", "content": "blocked " * 20}],
                },
            ]
        },
    )

    for first, second in zip(of_three({}, {}, {}), later, strict=True):
        assert second.conversation == first.conversation != ""
        assert second.turns == 1, "a result of a tool is no turn of the user"
        result_tokens = 6 + 40
        assert second.shared_tokens_estimate == second.prompt_tokens_estimate - result_tokens
        assert second.shared_tokens_estimate > first.prompt_tokens_estimate
        assert first.shared_tokens_estimate == 6 + -(-len(SYSTEM) // 4), "the system prompt"


def test_other_questions_are_other_conversations() -> None:
    question = {"role": "user", "content": "Where is my money?"}
    other = chat_features({"model": "auto", "messages": [CHAT["messages"][0], question]})

    assert other.conversation != chat_features(CHAT).conversation
    assert chat_features({"model": "auto", "messages": [{"role": "user", "content": ""}]}).conversation == ""
    assert completion_features({"model": "auto", "prompt": "hi"}).conversation == ""


def test_schemas_and_tools_are_seen_and_named() -> None:
    tool = {"name": "look", "parameters": SCHEMA}
    plain = of_three({}, {}, {})
    with_schema = of_three(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    )
    with_tools = of_three(
        {"tools": [{"type": "function", "function": tool}]}, {"tools": [tool]}, {"tools": [tool]}
    )

    for without, schema, tools in zip(plain, with_schema, with_tools, strict=True):
        assert (without.has_schema, without.has_tools, without.schema_digest) == (False, False, "")
        assert (schema.has_schema, schema.has_tools) == (True, False)
        assert (tools.has_schema, tools.has_tools) == (False, True)
        assert "" != schema.schema_digest != tools.schema_digest != ""
        assert tools.prompt_tokens_estimate > without.prompt_tokens_estimate + 10
    again = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
    assert chat_features(CHAT | again).schema_digest == with_schema[0].schema_digest


def test_of_chat_parts_and_developers() -> None:
    features = chat_features(
        {
            "model": "auto",
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "user", "content": "ü" * 40},
            ],
            "response_format": {"type": "json_object"},
            "max_completion_tokens": 7,
            "stream": True,
        }
    )

    assert features.system_prompt == "Be brief."
    assert features.turns == 2
    assert features.has_schema
    assert features.stream
    assert features.max_tokens == 7
    assert features.prompt_tokens_estimate > 4 * 6 + 80 // 4


def test_of_embeddings_and_counts() -> None:
    embedding = embedding_features({"model": "auto", "input": ["x" * 400, "y" * 800]})
    assert (embedding.prompt_tokens_estimate, embedding.longest_prompt_tokens) == (300, 200)
    assert (embedding.kind, embedding.max_tokens) == (RequestKind.EMBED, 0)

    messages = {"system": "x" * 200, "messages": [{"role": "user", "content": "y" * 200}]}
    for features_of, body, kind in (
        (tokenize_features, {"prompt": "x" * 400}, RequestKind.TOKENIZE),
        (tokenize_features, messages, RequestKind.TOKENIZE),
        (count_features, messages, RequestKind.COUNT),
    ):
        count = features_of({"model": "auto"} | body)
        assert count.kind is kind
        assert (count.prompt_tokens_estimate, count.longest_prompt_tokens) == (100, 0)
        assert count.tokens_at_most(0) == 0


@pytest.mark.parametrize("text", ["", "a", "é", "日本語", "\ud7ff"])
def test_estimates_count_bytes(text: str) -> None:
    features = completion_features({"model": "auto", "prompt": [text]})

    assert features.prompt_tokens_estimate == -(-len(text.encode()) // 4)
