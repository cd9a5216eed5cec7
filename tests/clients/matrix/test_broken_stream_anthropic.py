"""An engine that dies in the middle of an answer, seen by Anthropic's SDK."""

from __future__ import annotations

import anthropic
import pytest
from answers import QUESTION
from conftest import Cluster

CLIENT = "anthropic"


def test_an_engine_that_dies_in_mid_stream(cluster: Cluster) -> None:
    with anthropic.Anthropic(base_url=cluster.root, api_key=cluster.api_key) as client:
        seen = []
        with (
            client.messages.stream(model="small", messages=QUESTION, max_tokens=32) as stream,
            pytest.raises(anthropic.APIError, match="engine"),
        ):
            seen.extend(stream.text_stream)
    assert "".join(seen)


def test_an_engine_that_dies_before_it_answers(cluster: Cluster) -> None:
    with (
        anthropic.Anthropic(base_url=cluster.root, api_key=cluster.api_key, max_retries=0) as client,
        pytest.raises(anthropic.InternalServerError) as caught,
    ):
        client.messages.create(model="small", messages=QUESTION, max_tokens=32)

    assert caught.value.body["error"]["type"] == "api_error"
