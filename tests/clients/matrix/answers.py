"""What the tests ask for. Small models stand behind: the types are narrow, so that every answer that obeys
the schema is short, and nothing here depends on wit."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "Is this positive or negative? 'I love it.' Answer one word."}]

LONG = [{"role": "user", "content": "Count from one to one thousand, in words."}]
"""At length, in the tier `large`: for callers that leave before the end."""


class Sentiment(BaseModel):
    """What a sentence says about a product."""

    label: Literal["positive", "negative"]
    sure: bool


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Oslo"]
    unit: Literal["celsius", "fahrenheit"]


WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": Weather.model_json_schema(),
    },
}

WEATHER_QUESTION = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


def length(vector: list[float]) -> float:
    return math.sqrt(sum(each * each for each in vector))
