"""LangChain's chat models, on OpenAI's routes."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from answers import Sentiment, Weather
from conftest import Cluster
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

CLIENT = "langchain-openai"

QUESTION = "Is this positive or negative? 'I love it.' Answer one word."
WEATHER_QUESTION = "What is the weather in Paris, in celsius?"


@tool(args_schema=Weather)
def get_weather(city: str, unit: str) -> str:
    """The weather in a city."""
    return f"12 degrees {unit} in {city}"


@pytest.fixture
def model(cluster: Cluster) -> ChatOpenAI:
    return chat_model(cluster, max_tokens=8)


def chat_model(cluster: Cluster, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="small", base_url=cluster.endpoint, api_key=cluster.api_key, temperature=0, **settings
    )


def test_invoke(model: ChatOpenAI) -> None:
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])

    assert answer.content
    assert 0 < answer.usage_metadata["output_tokens"] <= 8


async def test_ainvoke(model: ChatOpenAI) -> None:
    assert (await model.ainvoke(QUESTION)).content


def test_batch(model: ChatOpenAI) -> None:
    assert all(answer.content for answer in model.batch([QUESTION, "Say yes."]))


def test_stream(model: ChatOpenAI) -> None:
    chunks = list(model.stream(QUESTION, stream_usage=True))

    assert "".join(chunk.text for chunk in chunks)
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 0


async def test_astream(model: ChatOpenAI) -> None:
    assert "".join([chunk.text async for chunk in model.astream(QUESTION)])


def test_bind_tools(cluster: Cluster) -> None:
    bound = chat_model(cluster, max_tokens=64).bind_tools([get_weather], tool_choice="required")

    call = bound.invoke(WEATHER_QUESTION).tool_calls[0]
    assert call["name"] == "get_weather"
    assert Weather.model_validate(call["args"])


def test_named_tool(cluster: Cluster) -> None:
    bound = chat_model(cluster, max_tokens=128).bind_tools(
        [get_weather], tool_choice="get_weather", strict=True, parallel_tool_calls=False
    )

    assert bound.invoke(WEATHER_QUESTION).tool_calls[0]["name"] == "get_weather"


def test_streamed_tool(cluster: Cluster) -> None:
    bound = chat_model(cluster, max_tokens=128).bind_tools([get_weather], tool_choice="get_weather")

    whole = None
    for chunk in bound.stream(WEATHER_QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert Weather.model_validate(whole.tool_calls[0]["args"])


def test_tool_result(cluster: Cluster) -> None:
    model = chat_model(cluster, max_tokens=128)
    asked = model.bind_tools([get_weather], tool_choice="get_weather").invoke(WEATHER_QUESTION)
    result = get_weather.invoke(asked.tool_calls[0])

    answer = model.bind_tools([get_weather], tool_choice="none").invoke(
        [HumanMessage(WEATHER_QUESTION), asked, result], max_tokens=8
    )

    assert isinstance(result, ToolMessage)
    assert isinstance(answer, AIMessage)
    assert answer.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(cluster: Cluster, method: str) -> None:
    structured = chat_model(cluster, max_tokens=128).with_structured_output(Sentiment, method=method)

    assert isinstance(structured.invoke(QUESTION), Sentiment)


def test_streamed_structured_output(cluster: Cluster) -> None:
    structured = chat_model(cluster, max_tokens=128).with_structured_output(Sentiment)

    *_, last = structured.stream(QUESTION)
    assert isinstance(last, Sentiment)


def test_responses_api(cluster: Cluster) -> None:
    answer = chat_model(cluster, use_responses_api=True, max_tokens=16).invoke(QUESTION)

    assert answer.text
    assert answer.usage_metadata["output_tokens"] > 0


def test_embeddings(cluster: Cluster) -> None:
    """`check_embedding_ctx_length` cuts by OpenAI's own tokens: off for models of others, as documented."""
    if cluster.embedding_model is None:
        pytest.skip("this cluster has no embedding pool")
    embeddings = OpenAIEmbeddings(
        model=cluster.embedding_model,
        base_url=cluster.endpoint,
        api_key=cluster.api_key,
        check_embedding_ctx_length=False,
    )

    assert len(embeddings.embed_documents(["a cat", "a dog"])) == 2


def test_a_wrong_key(cluster: Cluster) -> None:
    with pytest.raises(openai.AuthenticationError):
        ChatOpenAI(model="small", base_url=cluster.endpoint, api_key="sk-wrong").invoke(QUESTION)


def test_a_prompt_that_fits_no_context(model: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        model.invoke("word " * 9000)

    assert caught.value.code == "context_length_exceeded"
