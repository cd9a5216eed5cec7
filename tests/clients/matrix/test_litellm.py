"""LiteLLM as a client, not as a proxy."""

from __future__ import annotations

from typing import Any

import litellm
import pytest
from answers import LONG, QUESTION, WEATHER_QUESTION, WEATHER_TOOL, Sentiment, Weather
from conftest import Cluster

CLIENT = "litellm"


@pytest.fixture
def call(cluster: Cluster) -> dict[str, Any]:
    return {
        "model": "openai/small",
        "api_base": cluster.endpoint,
        "api_key": cluster.api_key,
        "messages": QUESTION,
        "max_tokens": 8,
        "temperature": 0,
    }


@pytest.fixture
def tool_call(call: dict[str, Any]) -> dict[str, Any]:
    return call | {
        "messages": WEATHER_QUESTION,
        "tools": [WEATHER_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 128,
    }


def test_completion(call: dict[str, Any]) -> None:
    answer = litellm.completion(**call)

    assert answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 8


async def test_acompletion(call: dict[str, Any]) -> None:
    assert (await litellm.acompletion(**call)).choices[0].message.content


def test_stream(call: dict[str, Any]) -> None:
    chunks = list(litellm.completion(**call, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content


def test_stream_with_usage(call: dict[str, Any]) -> None:
    chunks = list(litellm.completion(**call, stream=True, stream_options={"include_usage": True}))

    assert 0 < chunks[-1].usage.completion_tokens <= 8


async def test_astream(call: dict[str, Any]) -> None:
    stream = await litellm.acompletion(**call, stream=True)

    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_tool(tool_call: dict[str, Any]) -> None:
    (found,) = litellm.completion(**tool_call).choices[0].message.tool_calls

    assert found.function.name == "get_weather"
    assert Weather.model_validate_json(found.function.arguments)


def test_required_tool(tool_call: dict[str, Any]) -> None:
    answer = litellm.completion(**tool_call | {"tool_choice": "required", "max_tokens": 64})
    found = answer.choices[0].message.tool_calls[0]

    assert Weather.model_validate_json(found.function.arguments)


def test_streamed_tool(tool_call: dict[str, Any]) -> None:
    whole = litellm.stream_chunk_builder(list(litellm.completion(**tool_call, stream=True)))

    assert Weather.model_validate_json(whole.choices[0].message.tool_calls[0].function.arguments)


def test_tool_result(tool_call: dict[str, Any]) -> None:
    """The assistant message goes back as LiteLLM gave it."""
    asked = litellm.completion(**tool_call).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "12 degrees"}

    answer = litellm.completion(
        **tool_call | {"messages": [*WEATHER_QUESTION, asked, result], "tool_choice": "none", "max_tokens": 8}
    )

    assert answer.choices[0].message.content


def test_schema(call: dict[str, Any]) -> None:
    answer = litellm.completion(**call | {"max_tokens": 128}, response_format=Sentiment)

    assert Sentiment.model_validate_json(answer.choices[0].message.content)


def test_embedding(cluster: Cluster) -> None:
    if cluster.embedding_model is None:
        pytest.skip("this cluster has no embedding pool")
    answer = litellm.embedding(
        model=f"openai/{cluster.embedding_model}",
        api_base=cluster.endpoint,
        api_key=cluster.api_key,
        input=["a cat", "a dog"],
    )

    assert len(answer.data) == 2


def test_a_wrong_key(call: dict[str, Any]) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**call | {"api_key": "sk-wrong"})


def test_an_unknown_model(call: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**call | {"model": "openai/gpt-9x"})


def test_a_value_out_of_range(call: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**call | {"temperature": 9})


def test_a_prompt_that_fits_no_context(call: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**call | {"messages": [{"role": "user", "content": "word " * 9000}]})


def test_a_rate_limit(call: dict[str, Any], cluster: Cluster) -> None:
    mine = call | {"api_key": cluster.slow_key, "max_retries": 0}
    litellm.completion(**mine | {"max_tokens": 1})

    with pytest.raises(litellm.RateLimitError):
        litellm.completion(**mine)


def test_a_timeout(call: dict[str, Any]) -> None:
    with pytest.raises(litellm.Timeout):
        litellm.completion(
            **call | {"model": "openai/large", "messages": LONG, "max_tokens": 1000},
            timeout=0.3,
            max_retries=0,
        )
