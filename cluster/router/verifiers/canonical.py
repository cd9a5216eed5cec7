"""One text per JSON value: equal values, equal texts."""

from __future__ import annotations

import json
from typing import Any


def canonical(value: Any) -> str:
    """Keys sorted, no spaces, 1.0 written as 1 (JSON Schema: both are the number one)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value
