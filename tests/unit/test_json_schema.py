"""Schemas from clients: what could make a grammar compiler grow or fail."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidRequest
from deployments.gateway.endpoints.json_schema import json_schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["string", "null"], "maxLength": 10_000, "pattern": "^[a-z]{1,8}$"},
        {"$defs": {"A": {"type": "object"}}, "properties": {"a": {"$ref": "#/$defs/A"}}},
        # Properties may have the names of keywords; data may look like schemas.
        {"properties": {"type": {"type": "string"}, "pattern": {"type": "integer"}, "enum": {}}},
        {"properties": {"a": {"const": {"type": 3, "pattern": 4}, "default": {"minLength": -1}}}},
        {"anyOf": [{"type": "string"}, {"type": "null"}], "additionalProperties": False, "items": True},
    ],
)
def test_honest_schemas_pass(schema: dict[str, Any]) -> None:
    json_schema(schema, "schema")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ([], "object"),
        ({"type": "any"}, "type"),
        ({"type": [3]}, "type"),
        ({"properties": {"a": {"type": {}}}}, "type"),
        ({"pattern": 3}, "regular expressions"),
        ({"items": {"pattern": "a" * 257}}, "regular expressions"),
        ({"patternProperties": {"a" * 257: {}}}, "regular expressions"),
        ({"$defs": {"A": {"maxLength": 10_001}}}, "maxLength"),
        ({"prefixItems": [{"minItems": -1}]}, "minItems"),
        ({"minProperties": True}, "minProperties"),
        ({"enum": ["x"] * 257}, "alternatives"),
        ({"properties": {str(n): {"enum": [1, 2, 3]} for n in range(100)}}, "alternatives"),
        ({"$ref": "http://10.0.0.1/schema"}, "stay inside"),
        ({"if": {"$ref": 3}}, "stay inside"),
        ({"description": "x" * 70_000}, "bytes"),
    ],
)
def test_the_rest_is_refused_with_the_reason(schema: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        json_schema(schema, "schema")
