"""instructor: typed extraction through each of its modes that suits the server."""

from __future__ import annotations

from typing import Any

import instructor
import openai
import pytest
from answers import QUESTION, Sentiment
from conftest import Cluster
from instructor.core import InstructorRetryException

CLIENT = "instructor"

CALL: dict[str, Any] = {"model": "small", "messages": QUESTION, "max_tokens": 128, "temperature": 0}


def official(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.api_key)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_extraction(cluster: Cluster, mode: str) -> None:
    client = instructor.from_openai(official(cluster), mode=instructor.Mode[mode])

    found = client.chat.completions.create(**CALL, response_model=Sentiment, max_retries=0)

    assert isinstance(found, Sentiment)


async def test_async_extraction(cluster: Cluster) -> None:
    client = instructor.from_openai(
        openai.AsyncOpenAI(base_url=cluster.endpoint, api_key=cluster.api_key),
        mode=instructor.Mode.JSON_SCHEMA,
    )

    found = await client.chat.completions.create(**CALL, response_model=Sentiment, max_retries=0)

    assert isinstance(found, Sentiment)


def test_streamed_extraction(cluster: Cluster) -> None:
    client = instructor.from_openai(official(cluster), mode=instructor.Mode.TOOLS)

    *_, last = client.chat.completions.create_partial(**CALL, response_model=Sentiment, max_retries=0)

    assert last.label in ("positive", "negative")


def test_answer_beside_its_completion(cluster: Cluster) -> None:
    client = instructor.from_openai(official(cluster), mode=instructor.Mode.TOOLS)

    found, completion = client.chat.completions.create_with_completion(**CALL, response_model=Sentiment)

    assert isinstance(found, Sentiment)
    assert completion.usage.completion_tokens > 0


def test_a_wrong_key(cluster: Cluster) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=cluster.endpoint, api_key="sk-wrong"))

    with pytest.raises(InstructorRetryException) as caught:
        client.chat.completions.create(**CALL, response_model=Sentiment, max_retries=0)

    assert "invalid_api_key" in str(caught.value)
