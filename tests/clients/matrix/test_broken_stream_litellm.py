"""An engine that dies in the middle of an answer, seen by LiteLLM."""

from __future__ import annotations

import litellm
import openai
import pytest
from answers import QUESTION
from conftest import Cluster

CLIENT = "litellm"


def test_an_engine_that_dies_in_mid_stream(cluster: Cluster) -> None:
    stream = litellm.completion(
        model="openai/small",
        api_base=cluster.endpoint,
        api_key=cluster.api_key,
        messages=QUESTION,
        max_tokens=32,
        stream=True,
    )

    with pytest.raises(openai.APIError, match="engine"):
        list(stream)
