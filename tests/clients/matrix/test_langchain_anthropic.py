"""LangChain's chat models, on Anthropic's route."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from answers import Sentiment, Weather
from conftest import Cluster
from langchain_anthropic import ChatAnthropic

CLIENT = "langchain-anthropic"

QUESTION = "Is this positive or negative? 'I love it.' Answer one word."


def chat_model(cluster: Cluster, **settings: Any) -> ChatAnthropic:
    return ChatAnthropic(
        **{"model": "small", "base_url": cluster.root, "api_key": cluster.api_key, "max_tokens": 8} | settings
    )


def test_invoke(cluster: Cluster) -> None:
    answer = chat_model(cluster).invoke([("system", "Be brief."), ("human", QUESTION)])

    assert answer.text
    assert 0 < answer.usage_metadata["output_tokens"] <= 8


def test_stream(cluster: Cluster) -> None:
    assert "".join(chunk.text for chunk in chat_model(cluster).stream(QUESTION))


def test_bind_tools(cluster: Cluster) -> None:
    bound = chat_model(cluster, max_tokens=128).bind_tools([Weather], tool_choice="any")

    call = bound.invoke("What is the weather in Paris, in celsius?").tool_calls[0]
    assert Weather.model_validate(call["args"])


def test_structured_output(cluster: Cluster) -> None:
    structured = chat_model(cluster, max_tokens=128).with_structured_output(Sentiment)

    assert isinstance(structured.invoke(QUESTION), Sentiment)


def test_a_wrong_key(cluster: Cluster) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        chat_model(cluster, api_key="sk-wrong").invoke(QUESTION)
