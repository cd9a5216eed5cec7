"""`/v1/responses`: stateless, and what vLLM then gets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import EngineFailed, InvalidRequest
from cluster.types import Usage
from deployments.gateway.endpoints.responses import RESPONSES
from tests.builders import candidate

TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "input_text", "text": "How is the weather?"}]},
    # Items of an answer of vLLM as the official client sends them back.
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "phase": None,
        "content": [{"type": "output_text", "text": "I will look.", "annotations": [], "logprobs": None}],
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
        "namespace": None,
        "caller": None,
        "async_": None,
    },
    {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    {"role": "user", "content": "So?"},
]


def parse(**changes: Any) -> dict[str, Any]:
    return RESPONSES.parse(orjson.dumps({"model": "auto", "input": "hi"} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0, "store": False},
        {"input": ITEMS, "include": ["reasoning.encrypted_content"]},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
        {
            "text": {
                "format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
            }
        },
        {"stream": True, "stream_options": {"include_obfuscation": False}, "truncation": "disabled"},
        {"reasoning": {"effort": "low"}, "user": "u", "metadata": {"task": "classify"}},
        {"previous_response_id": None, "tools": []},
    ],
)
def test_what_clients_use_passes(changes: dict[str, Any]) -> None:
    assert parse(**changes)["model"] == "auto"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp", "name": "x", "server_url": "http://10.0.0.1"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"vllm_xargs": {}}, "vllm_xargs"),
        ({"previous_input_messages": []}, "previous_input_messages"),
        ({"request_id": "x"}, "request_id"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
    ],
)
def test_everything_else_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**changes)

    assert caught.value.param == param


def test_the_engine_stores_nothing_and_has_a_firm_limit() -> None:
    body = parse(
        metadata={"task": "x"}, user="me", stream=True, max_output_tokens=99, service_tier="auto", include=[]
    )

    sent = orjson.loads(RESPONSES.engine_body(body, candidate(max_tokens=9), "salt"))

    assert sent == {
        "model": "small-base",
        "input": "hi",
        "stream": True,
        "include": [],
        "max_output_tokens": 9,
        "store": False,
        "cache_salt": "salt",
    }


def test_usage_of_an_answer() -> None:
    assert RESPONSES.usage_of(b'{"usage": {"input_tokens": 7, "output_tokens": 2}}') == Usage(7, 2)
    for raw in (b"{}", b"[]", b"no", b'{"usage": null}', b'{"response": 3}'):
        with pytest.raises(EngineFailed):
            RESPONSES.usage_of(raw)


def test_a_failed_stream_ends_with_an_event_that_the_official_client_raises_for() -> None:
    assert RESPONSES.error_event is not None
    event = RESPONSES.error_event(EngineFailed("broken"))

    name, _, data = event.partition(b"\ndata: ")
    fields = orjson.loads(data)
    assert name == b"event: error"
    assert event.endswith(b"\n\n")
    assert (fields["type"], fields["code"], fields["error"]["message"]) == (
        "error",
        "engine_failed",
        "broken",
    )
