"""Drafts on `/v1/responses` and `/v1/messages`: what the verifiers see."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import EngineFailed
from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.messages import MESSAGES
from deployments.gateway.endpoints.plain_drafts import PlainDrafts
from deployments.gateway.endpoints.responses import RESPONSES

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def drafts_of(endpoint: Endpoint) -> PlainDrafts:
    assert isinstance(endpoint.drafts, PlainDrafts)
    return endpoint.drafts


def events(*each: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (value["type"].encode(), orjson.dumps(value)) for value in each
    )


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES])
def test_one_draft_without_logprobs_can_be_judged(endpoint: Endpoint) -> None:
    drafts = drafts_of(endpoint)
    assert drafts.can_be_judged({}, logprobs=False, drafts=1)
    assert not drafts.can_be_judged({}, logprobs=True, drafts=1)
    assert not drafts.can_be_judged({}, logprobs=False, drafts=2)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Expected()),
        ({"text": {"format": {"type": "json_object"}}}, Expected(json=True)),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
            Expected(schema=SCHEMA),
        ),
        (
            {
                "tools": [{"type": "function", "name": "pay", "parameters": SCHEMA}],
                "tool_choice": {"type": "function", "name": "pay"},
            },
            Expected(tools=(Tool("pay", SCHEMA),), tool_choice="pay"),
        ),
        ({"tools": [{"type": "function", "name": "pay"}]}, Expected(tools=(Tool("pay"),))),
    ],
)
def test_what_a_response_is_expected_to_be(body: dict[str, Any], expected: Expected) -> None:
    assert drafts_of(RESPONSES).expected(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Expected()),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, Expected(schema=SCHEMA)),
        (
            {"tools": [{"name": "pay", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
            Expected(tools=(Tool("pay", SCHEMA),), tool_choice="required"),
        ),
        (
            {
                "tools": [{"name": "pay", "input_schema": SCHEMA}],
                "tool_choice": {"type": "tool", "name": "pay"},
            },
            Expected(tools=(Tool("pay", SCHEMA),), tool_choice="pay"),
        ),
        ({"tool_choice": {"type": "none"}}, Expected(tool_choice="none")),
    ],
)
def test_what_a_message_is_expected_to_be(body: dict[str, Any], expected: Expected) -> None:
    assert drafts_of(MESSAGES).expected(body) == expected


def response(status: str, *output: dict[str, Any]) -> dict[str, Any]:
    return {"status": status, "output": [{"type": "reasoning", "summary": []}, *output]}


TEXT_ITEM = {"type": "message", "content": [{"type": "output_text", "text": "so be it"}]}
CALL_ITEM = {"type": "function_call", "name": "pay", "arguments": '{"a":1}'}


@pytest.mark.parametrize(
    ("answer", "draft"),
    [
        (response("completed", TEXT_ITEM), Draft("so be it", (), "stop")),
        (response("incomplete", TEXT_ITEM), Draft("so be it", (), "length")),
        (response("completed", CALL_ITEM), Draft("", (ToolCall("pay", '{"a":1}'),), "tool_calls")),
        (
            response(
                "completed", {"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}
            ),
            Draft("I cannot.", (), "stop"),
        ),
    ],
)
def test_a_response_becomes_a_draft(answer: dict[str, Any], draft: Draft) -> None:
    """Whole, and as the last event of a stream, with ours before it."""
    drafts = drafts_of(RESPONSES)
    assert drafts.read(orjson.dumps(answer)) == draft
    end = b": sprat {}\n\n" + events({"type": "response.completed", "response": answer})
    assert drafts.read_events(end) == draft


def test_the_beginning_of_a_response() -> None:
    begun = events(
        {"type": "response.created", "response": response("in_progress")},
        {"type": "response.output_item.added", "item": {"type": "message", "content": []}, "output_index": 0},
        {"type": "response.output_text.delta", "delta": "so ", "output_index": 0},
        {"type": "response.output_text.delta", "delta": "be", "output_index": 0},
        {"type": "response.output_item.added", "item": CALL_ITEM | {"arguments": ""}, "output_index": 1},
        {"type": "response.function_call_arguments.delta", "delta": '{"a"', "output_index": 1},
    )
    assert drafts_of(RESPONSES).read_events(begun) == Draft("so be", (ToolCall("pay", '{"a"'),))


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"), ("refusal", "refusal")],
)
def test_a_message_becomes_the_same_draft_whole_and_streamed(stop_reason: str, finish_reason: str) -> None:
    drafts = drafts_of(MESSAGES)
    use = {"type": "tool_use", "id": "1", "name": "pay", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    answer = {"content": [thought, {"type": "text", "text": "so"}, use], "stop_reason": stop_reason}
    stream = events(
        {"type": "message_start", "message": {}},
        {"type": "content_block_start", "index": 0, "content_block": thought | {"thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "so"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": use | {"input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "x", "partial_json": '{"a":'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "x", "partial_json": "1}"}},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}},
        {"type": "message_stop"},
    )
    draft = Draft("so", (ToolCall("pay", '{"a":1}'),), finish_reason)
    assert drafts.read(orjson.dumps(answer)) == draft
    assert drafts.read_events(stream) == draft


@pytest.mark.parametrize("endpoint", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"output":[{}],"content":[{}]}'])
def test_what_cannot_be_read_is_the_engines_fault(endpoint: Endpoint, raw: bytes) -> None:
    with pytest.raises(EngineFailed):
        drafts_of(endpoint).read(raw)
    with pytest.raises(EngineFailed):
        drafts_of(endpoint).read_events(b"event: x\ndata: " + raw + b"\n\n")
