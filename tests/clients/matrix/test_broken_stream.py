"""An engine that dies in the middle of an answer: the SDK raises, it never ends as if all were said."""

from __future__ import annotations

import openai
import pytest
from answers import QUESTION
from conftest import Cluster

CLIENT = "openai"


def test_an_engine_that_dies_in_mid_stream(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.api_key) as client:
        stream = client.chat.completions.create(model="small", messages=QUESTION, max_tokens=32, stream=True)

        seen = []
        with pytest.raises(openai.APIError, match="engine"):
            seen.extend(stream)
    assert any(chunk.choices[0].delta.content for chunk in seen)


def test_an_engine_that_dies_before_it_answers(cluster: Cluster) -> None:
    with (
        openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.api_key, max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="small", messages=QUESTION, max_tokens=32)

    assert caught.value.status_code in (502, 503)


def test_an_engine_that_dies_in_a_streamed_response(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.api_key) as client:
        stream = client.responses.create(model="small", input="Say yes.", max_output_tokens=32, stream=True)

        seen = []
        with pytest.raises(openai.APIError, match="engine"):
            seen.extend(stream)
    assert "response.output_text.delta" in {event.type for event in seen}
