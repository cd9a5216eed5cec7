"""Anthropic's own SDK. Its base URL has no `/v1`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from answers import LONG, QUESTION, WEATHER_QUESTION, WEATHER_TOOL, Sentiment, Weather
from conftest import Cluster

CLIENT = "anthropic"

CALL: dict[str, Any] = {"model": "small", "messages": QUESTION, "max_tokens": 8}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": WEATHER_TOOL["function"]["parameters"],
}
CALLED = ("tool_use", "max_tokens")
"""Under `any` a model this small may call again and again, until the limit ends it."""

NAMED: dict[str, Any] = {"type": "tool", "name": "get_weather"}
TOOL_CALL: dict[str, Any] = {
    "model": "small",
    "messages": WEATHER_QUESTION,
    "tools": [TOOL],
    "max_tokens": 128,
}


@pytest.fixture
def client(cluster: Cluster) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=cluster.root, api_key=cluster.api_key) as made:
        yield made


@pytest.fixture
async def async_client(cluster: Cluster) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=cluster.root, api_key=cluster.api_key) as made:
        yield made


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_message(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(**CALL)
    message = raw.parse()

    assert float(raw.headers["x-sprat-cost-usd"]) > 0
    assert (message.type, message.role) == ("message", "assistant")
    assert text_of(message)
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens > 0
    assert 0 < message.usage.output_tokens <= 8


async def test_async_message(async_client: anthropic.AsyncAnthropic) -> None:
    assert text_of(await async_client.messages.create(**CALL))


def test_key_in_a_header_of_its_own(cluster: Cluster) -> None:
    """Where the SDK's earlier versions put it."""
    with anthropic.Anthropic(
        base_url=cluster.root,
        api_key=cluster.api_key,
        default_headers={"authorization": anthropic.omit, "x-api-key": cluster.api_key},
    ) as client:
        assert text_of(client.messages.create(**CALL))


def test_system_and_conversation(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="small",
        system=[{"type": "text", "text": "Answer one word."}],
        messages=[
            *QUESTION,
            {"role": "assistant", "content": [{"type": "text", "text": "positive"}]},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
        max_tokens=8,
    )

    assert text_of(message)


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**CALL) as stream:
        text = "".join(stream.text_stream)

    final = stream.get_final_message()
    assert text
    assert text == text_of(final)
    assert 0 < final.usage.output_tokens <= 8


def test_raw_stream(client: anthropic.Anthropic) -> None:
    kinds = [event.type for event in client.messages.create(**CALL, stream=True)]

    assert kinds[:2] == ["message_start", "content_block_start"]
    assert "content_block_delta" in kinds
    assert kinds[-2:] == ["message_delta", "message_stop"]


async def test_async_stream(async_client: anthropic.AsyncAnthropic) -> None:
    async with async_client.messages.stream(**CALL) as stream:
        assert "".join([text async for text in stream.text_stream])


def test_required_tool(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**TOOL_CALL | {"max_tokens": 64}, tool_choice={"type": "any"})

    call = next(block for block in message.content if block.type == "tool_use")
    assert message.stop_reason in CALLED
    assert Weather.model_validate(call.input)


def test_named_tool(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**TOOL_CALL, tool_choice=NAMED)

    call = next(block for block in message.content if block.type == "tool_use")
    assert call.name == "get_weather"
    assert Weather.model_validate(call.input)


def test_tool_left_to_the_model(client: anthropic.Anthropic) -> None:
    assert client.messages.create(**TOOL_CALL).content


def test_streamed_tool(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**TOOL_CALL, tool_choice=NAMED) as stream:
        kinds = {event.type for event in stream}

    assert "input_json" in kinds
    call = next(block for block in stream.get_final_message().content if block.type == "tool_use")
    assert Weather.model_validate(call.input)


def test_tool_result(client: anthropic.Anthropic) -> None:
    """The assistant's content goes back as the SDK gave it."""
    asked = client.messages.create(**TOOL_CALL, tool_choice=NAMED)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "12 degrees"}
        for block in asked.content
        if block.type == "tool_use"
    ]

    answer = client.messages.create(
        **TOOL_CALL
        | {
            "messages": [
                *WEATHER_QUESTION,
                {"role": "assistant", "content": asked.content},
                {"role": "user", "content": results},
            ],
            "max_tokens": 8,
        },
        tool_choice={"type": "none"},
    )

    assert text_of(answer)


def test_parse(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(**CALL | {"max_tokens": 128}, output_format=Sentiment)

    assert isinstance(message.parsed_output, Sentiment)


def test_stop_sequence(client: anthropic.Anthropic) -> None:
    word = text_of(client.messages.create(**CALL)).split()[-1]

    message = client.messages.create(**CALL, stop_sequences=[word])

    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == word


def test_count_tokens(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="small", messages=QUESTION).input_tokens > 0


def test_a_wrong_key(cluster: Cluster) -> None:
    with (
        anthropic.Anthropic(base_url=cluster.root, api_key="sk-wrong") as wrong,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        wrong.messages.create(**CALL)

    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_an_unknown_model(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**CALL | {"model": "claude-9"})

    assert caught.value.body["error"]["type"] == "not_found_error"


def test_a_value_out_of_range(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**CALL | {"max_tokens": 0})

    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_a_rate_limit_is_waited_for(cluster: Cluster) -> None:
    with anthropic.Anthropic(base_url=cluster.root, api_key=cluster.slow_key, max_retries=4) as client:
        client.messages.create(**CALL | {"max_tokens": 1})
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.with_options(max_retries=0).messages.create(**CALL)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 6

        assert client.messages.create(**CALL).content


def test_a_timeout(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.3, max_retries=0).messages.create(
            model="large", messages=LONG, max_tokens=1000
        )


def test_a_stream_left_early(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="large", messages=LONG, max_tokens=1000) as stream:
        assert next(iter(stream.text_stream))
