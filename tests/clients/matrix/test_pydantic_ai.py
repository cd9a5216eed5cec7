"""pydantic-ai: agents with typed outputs and tools, on all three kinds of route."""

from __future__ import annotations

from typing import Any

import pytest
from answers import Sentiment, Weather
from conftest import Cluster
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, RunContext, UsageLimits
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

CLIENT = "pydantic-ai-slim"

QUESTION = "Is this positive or negative? 'I love it.' Answer one word."
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
TYPED: dict[str, Any] = {"temperature": 0, "max_tokens": 128}
TWO_REQUESTS = UsageLimits(request_limit=2)


@pytest.fixture
def model(cluster: Cluster) -> OpenAIChatModel:
    return OpenAIChatModel(
        "small", provider=OpenAIProvider(base_url=cluster.endpoint, api_key=cluster.api_key)
    )


async def test_run(model: OpenAIChatModel) -> None:
    result = await Agent(model, instructions="Be brief.", model_settings=SHORT).run(QUESTION)

    assert result.output
    assert 0 < result.usage.output_tokens <= 8


async def test_run_stream(model: OpenAIChatModel) -> None:
    async with Agent(model, model_settings=SHORT).run_stream(QUESTION) as result:
        assert "".join([text async for text in result.stream_text(delta=True)])


async def test_conversation(model: OpenAIChatModel) -> None:
    agent = Agent(model, model_settings=SHORT)
    first = await agent.run(QUESTION)

    assert (await agent.run("Sure?", message_history=first.all_messages())).output


async def test_output_by_tool(model: OpenAIChatModel) -> None:
    result = await Agent(model, output_type=Sentiment, model_settings=TYPED).run(QUESTION)

    assert isinstance(result.output, Sentiment)


async def test_output_by_schema(model: OpenAIChatModel) -> None:
    result = await Agent(model, output_type=NativeOutput(Sentiment), model_settings=TYPED).run(QUESTION)

    assert isinstance(result.output, Sentiment)


async def test_streamed_output(model: OpenAIChatModel) -> None:
    agent = Agent(model, output_type=NativeOutput(Sentiment), model_settings=TYPED)
    async with agent.run_stream(QUESTION) as result:
        assert isinstance(await result.get_output(), Sentiment)


def first_the_tool(context: RunContext) -> dict[str, Any]:
    """A small model does not choose well: the first request is for the tool, the second for the output."""
    return TYPED | {"tool_choice": ["get_weather"] if context.run_step <= 1 else "none"}


async def test_tool_and_typed_output(model: OpenAIChatModel) -> None:
    agent = Agent(model, output_type=Sentiment, model_settings=first_the_tool)
    asked: list[Weather] = []

    @agent.tool_plain
    def get_weather(wanted: Weather) -> str:
        """The weather in a city."""
        asked.append(wanted)
        return f"12 degrees in {wanted.city}"

    result = await agent.run("What is the weather in Paris, in celsius?", usage_limits=TWO_REQUESTS)

    assert len(asked) == 1
    assert isinstance(result.output, Sentiment)


async def test_responses_api(cluster: Cluster) -> None:
    model = OpenAIResponsesModel(
        "small", provider=OpenAIProvider(base_url=cluster.endpoint, api_key=cluster.api_key)
    )

    result = await Agent(model, output_type=NativeOutput(Sentiment), model_settings=TYPED).run(QUESTION)

    assert isinstance(result.output, Sentiment)


async def test_anthropic_api(cluster: Cluster) -> None:
    model = AnthropicModel(
        "small", provider=AnthropicProvider(base_url=cluster.root, api_key=cluster.api_key)
    )

    result = await Agent(model, output_type=Sentiment, model_settings=TYPED).run(QUESTION)

    assert isinstance(result.output, Sentiment)


async def test_a_wrong_key(cluster: Cluster) -> None:
    model = OpenAIChatModel("small", provider=OpenAIProvider(base_url=cluster.endpoint, api_key="sk-wrong"))

    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model).run(QUESTION)

    assert caught.value.status_code == 401
