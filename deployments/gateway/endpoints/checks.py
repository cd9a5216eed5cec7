"""What the fields of a request body may hold. A check raises InvalidRequest that names the field.

Caps are those of the threat model (THREATS.md rows 2 to 10). A field that is null counts as absent. Beside
each check stands the JSON schema that says the same to readers of the API's description (`schema_of`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidRequest

Check = Callable[[Any, str], None]
"""Of a value and the name under which an error speaks of it. The value is not null."""

Schema = dict[str, Any]

MAX_JSON_DEPTH = 32
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


_SCHEMAS: dict[Check, Schema] = {}


def described(check: Check, schema: Schema) -> Check:
    """The check, with the schema of what it lets pass (all that, perhaps more)."""
    _SCHEMAS[check] = schema
    return check


def schema_of(check: Check) -> Schema:
    """`{}`, which is anything, for a check that nobody described."""
    return _SCHEMAS.get(check, {})


def object_schema(fields: Mapping[str, Check], required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "properties": {
            name: schema_of(check) if name in required else {"anyOf": [schema_of(check), {"type": "null"}]}
            for name, check in fields.items()
        },
        "required": list(required),
        "additionalProperties": False,
    }


def closed_object(raw: bytes, fields: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
    """Parse once, check every field. An unknown one is an error, never passed through."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    # Counting brackets is cheap, and bodies with fewer than that cannot be deeper.
    if raw.count(b"{") + raw.count(b"[") > MAX_JSON_DEPTH and deeper_than(body, MAX_JSON_DEPTH):
        raise InvalidRequest(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
    for name in required:
        if body.get(name) is None:
            raise InvalidRequest(
                f"The field {name!r} is required.", param=name, code="missing_required_parameter"
            )
    for name, value in body.items():
        check = fields.get(name)
        if check is None:
            raise InvalidRequest(
                f"The field {name[:64]!r} is not supported here.", param=name[:64], code="unknown_parameter"
            )
        if value is not None:
            check(value, name)
    return body


def object_of(fields: Mapping[str, Check], required: tuple[str, ...] = ()) -> Check:
    """As `closed_object`, for an object inside the body."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise fail(name, "an object", "invalid_type")
        for each in required:
            if value.get(each) is None:
                raise InvalidRequest(
                    f"{name}.{each} is required.", param=name, code="missing_required_parameter"
                )
        for field, held in value.items():
            check_field = fields.get(field)
            if check_field is None:
                raise InvalidRequest(
                    f"{name}.{field[:64]} is not supported here.", param=name, code="unknown_parameter"
                )
            if held is not None:
                check_field(held, f"{name}.{field}")

    return described(check, object_schema(fields, required))


def either(one: Check, other: Check, use_other: Callable[[Any], bool]) -> Check:
    """`other` for values of which `use_other` is true."""

    def check(value: Any, name: str) -> None:
        (other if use_other(value) else one)(value, name)

    return described(check, {"anyOf": [schema_of(one), schema_of(other)]})


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def fail(name: str, expected: str, code: str = "invalid_value") -> InvalidRequest:
    """The error, to be raised."""
    return InvalidRequest(f"The field {name!r} must be {expected}.", param=name, code=code)


def text(max_length: int) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or not value or len(value) > max_length:
            raise fail(name, f"a string of 1 to {max_length} characters")

    return described(check, {"type": "string", "minLength": 1, "maxLength": max_length})


def string(value: Any, name: str) -> None:
    """Of any length: the body as a whole is bounded."""
    if not isinstance(value, str):
        raise fail(name, "a string", "invalid_type")


def symbol(value: Any, name: str) -> None:
    """Names of tools and schemas: they end up in grammars and in prompts."""
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise fail(name, "1 to 128 letters, digits or one of _ . : / -")


def one_of(*options: str) -> Check:
    def check(value: Any, name: str) -> None:
        if value not in options:
            raise fail(name, f"{', '.join(options[:-1])} or {options[-1]}" if options[1:] else options[0])

    return described(check, {"enum": list(options)})


def number(low: float, high: float) -> Check:
    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise fail(name, "a finite number", "invalid_type")
        if not low <= value <= high:
            raise fail(name, f"between {low:g} and {high:g}")

    return described(check, {"type": "number", "minimum": low, "maximum": high})


def integer(low: int, high: int) -> Check:
    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise fail(name, "an integer", "invalid_type")
        if not low <= value <= high:
            raise fail(name, f"between {low} and {high}")

    return described(check, {"type": "integer", "minimum": low, "maximum": high})


def boolean(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise fail(name, "true or false", "invalid_type")


def only_false(value: Any, name: str) -> None:
    if value is not False:
        raise fail(name, "false or absent: it is not supported here")


def only_empty(value: Any, name: str) -> None:
    """Fields of answers that come back in the next question. Engines send them as null."""
    if value not in ([], ""):
        raise fail(name, "empty, null or absent: it is not supported here")


def list_of(check: Check, low: int, high: int) -> Check:
    def check_all(value: Any, name: str) -> None:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise fail(name, f"a list of {low} to {high} entries")
        for index, each in enumerate(value):
            check(each, f"{name}[{index}]")

    return described(
        check_all, {"type": "array", "items": schema_of(check), "minItems": low, "maxItems": high}
    )


def metadata(value: Any, name: str) -> None:
    if not isinstance(value, dict) or len(value) > 16:
        raise fail(name, "an object of at most 16 strings")
    for key, each in value.items():
        if len(key) > 64 or not isinstance(each, str) or len(each) > 512:
            raise fail(f"{name}.{key[:64]}", "a string of at most 512 characters, under a key of at most 64")


def bounded(max_bytes: int, max_depth: int) -> Check:
    """Any JSON of that size."""

    def check(value: Any, name: str) -> None:
        if len(orjson.dumps(value)) > max_bytes:
            raise fail(name, f"at most {max_bytes} bytes")
        if deeper_than(value, max_depth):
            raise fail(name, f"nested at most {max_depth} levels")

    return check


def deeper_than(value: Any, levels: int) -> bool:
    if levels < 0:
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(child, (dict, list)) and deeper_than(child, levels - 1) for child in children)


described(string, {"type": "string"})
described(symbol, {"type": "string", "pattern": f"^{NAME.pattern}$"})
described(boolean, {"type": "boolean"})
described(only_false, {"const": False})
described(only_empty, {"enum": ["", []]})
described(
    metadata,
    {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 512},
        "propertyNames": {"maxLength": 64},
        "maxProperties": 16,
    },
)
