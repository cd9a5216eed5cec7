"""JSON schemas from clients. Engines compile them to grammars, on a core of their own and without a time
limit (vllm#54003), so everything that grows there is capped here (THREATS.md row 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.errors import InvalidRequest
from deployments.gateway.endpoints.checks import bounded, described, fail

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 16
MAX_PATTERN_LENGTH = 256
MAX_BRANCHES = 256

MAX_REPEATS = 10_000
"""Of `maxLength`, `minItems` and the like. A grammar grows with them: maxLength 100,000 took 2.5 s of
compiling (xgrammar, 2026-11-22), 10,000 a tenth of it."""

TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
BRANCHING = ("anyOf", "oneOf", "allOf", "enum")
REPEATING = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
DATA = frozenset({"enum", "const", "default", "examples", "required", "type"})

_size = bounded(MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH)


def json_schema(value: Any, name: str) -> None:
    """A `Check`. Knows what can hurt, not all of JSON Schema: the engine says what else is wrong."""
    if not isinstance(value, dict):
        raise fail(name, "a JSON schema object", "invalid_type")
    _size(value, name)
    branches = 0
    for schema in _schemas(value):
        branches += sum(len(schema[key]) for key in BRANCHING if isinstance(schema.get(key), list))
        _type(schema.get("type"), name)
        _patterns(schema, name)
        _repeats(schema, name)
        reference = schema.get("$ref")
        if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
            raise fail(name, "a schema whose $ref stay inside it (#/$defs/Name)")
    if branches > MAX_BRANCHES:
        raise fail(name, f"a schema with at most {MAX_BRANCHES} alternatives ({', '.join(BRANCHING)})")


def _schemas(value: Any) -> Iterator[dict[str, Any]]:
    """The schema and all inside it. Names of properties are no keywords, and data are no schemas."""
    if not isinstance(value, dict):
        return
    yield value
    for keyword, held in value.items():
        if keyword in NAMED_SCHEMAS and isinstance(held, dict):
            for each in held.values():
                yield from _schemas(each)
        elif keyword in LISTED_SCHEMAS and isinstance(held, list):
            for each in held:
                yield from _schemas(each)
        elif keyword not in DATA:
            yield from _schemas(held)


def _type(value: Any, name: str) -> None:
    types = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each in TYPES for each in types):
        raise fail(name, f"a schema whose type is one of {', '.join(sorted(TYPES))}, or a list of them")


def _patterns(schema: dict[str, Any], name: str) -> None:
    keyed = schema.get("patternProperties")
    patterns = [schema["pattern"]] if schema.get("pattern") is not None else []
    patterns += list(keyed) if isinstance(keyed, dict) else []
    if not all(isinstance(each, str) and len(each) <= MAX_PATTERN_LENGTH for each in patterns):
        raise fail(
            name, f"a schema whose regular expressions are strings of at most {MAX_PATTERN_LENGTH} characters"
        )


def _repeats(schema: dict[str, Any], name: str) -> None:
    for keyword in REPEATING:
        count = schema.get(keyword)
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_REPEATS:
            raise InvalidRequest(
                f"{name}: {keyword} must be a whole number from 0 to {MAX_REPEATS}. Leave it out to set no "
                "bound.",
                param=name,
                code="invalid_value",
            )


described(json_schema, {"type": "object"})
