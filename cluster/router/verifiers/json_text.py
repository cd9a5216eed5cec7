"""JSON out of an engine's text."""

from __future__ import annotations

import json
from typing import Any

import orjson

MAX_CHARACTERS = 2**18
"""Longer texts are not read: parsing and validating would hold the gateway's event loop."""


class NotJson(ValueError):
    """The argument says what the text is instead, in one word."""


def parsed(text: str) -> Any:
    """Strictly: no NaN, nothing before or after it. Raises NotJson."""
    if len(text) > MAX_CHARACTERS:
        raise NotJson("too_long")
    try:
        return orjson.loads(text)
    except ValueError:
        raise NotJson(_instead(text.strip())) from None


def _instead(text: str) -> str:
    if not text:
        return "empty"
    if text.startswith("```"):
        return "fenced"
    start = min(filter(lambda found: found >= 0, (text.find("{"), text.find("["))), default=-1)
    if start < 0:
        return "not_json"
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return "not_json"
    # Python's parser takes more than JSON is (NaN).
    return "chatty" if start > 0 or end < len(text) else "not_json"
