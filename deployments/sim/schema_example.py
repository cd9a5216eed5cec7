"""A JSON value that satisfies the simple part of a JSON schema: types, required, enum, const, bounds.

Not a validator: `pattern`, `format` and conditions are not looked at.
"""

from __future__ import annotations

import math
from typing import Any

TEXT = "[simulated]"
# Schemas come from clients. One that refers to itself has to end, and one that nests arrays in arrays
# must not grow without bound: beyond these everything is null.
MAX_DEPTH = 16
MAX_VALUES = 1000
MAX_TEXT_CHARS = 1024


def example(schema: Any) -> Any:
    return _Example(schema).value(schema, 0)


class _Example:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._values_left = MAX_VALUES

    def value(self, schema: Any, depth: int) -> Any:
        self._values_left -= 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._values_left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        if options := _list(schema.get("enum")):
            return options[0]
        if isinstance(reference := schema.get("$ref"), str):
            return self.value(self._target(reference), depth + 1)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if options := _list(schema.get(keyword)):
                return self.value(options[0], depth + 1)
        match _type(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                count = min(int(_number(schema.get("minItems"), 0)), MAX_VALUES)
                return [self.value(schema.get("items"), depth + 1) for _ in range(count)]
            case "string":
                return _text(schema)
            case "integer":
                return int(_number(schema.get("minimum"), 0))
            case "number":
                return float(_number(schema.get("minimum"), 0))
            case "boolean":
                return False
        return None

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return {name: self.value(known.get(name, {"type": "string"}), depth + 1) for name in required}

    def _target(self, reference: str) -> Any:
        """Local references only (`#/$defs/Name`)."""
        target = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                target = target.get(step) if isinstance(target, dict) else None
        return target


def _type(schema: dict[str, Any]) -> str | None:
    stated = schema.get("type")
    if options := _list(stated):
        stated = options[0]
    if isinstance(stated, str):
        return stated
    return "object" if "properties" in schema or "required" in schema else None


def _text(schema: dict[str, Any]) -> str:
    text = TEXT.ljust(min(int(_number(schema.get("minLength"), 0)), MAX_TEXT_CHARS), ".")
    longest = schema.get("maxLength")
    return text[:longest] if isinstance(longest, int) and longest >= 0 else text


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return value
