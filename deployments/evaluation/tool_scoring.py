"""Whether a call of a tool is right, by BFCL's published rules for Python (its "AST" score).

Right is: one call, the function's name, every required parameter, no unknown one, and for each parameter a
value of the described type that is one of the allowed ones; "" among the allowed ones means that it may be
left out. Strings are compared without case, spaces and some punctuation. An int may stand for a float, but
not inside a list; types are checked one level deep (ShishirPatil/gorilla,
berkeley-function-call-leaderboard, eval_checker/ast_eval).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.router.verifiers.draft import ToolCall
from deployments.evaluation.tool_schema import tool_name

PYTHON_TYPE: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
LEFT_OUT = ""
"""Among the allowed values of a parameter that may be left out."""

IGNORED = re.compile(r"[ ,./\-_*^]")

Allowed = Sequence[Any]


def is_right_call(
    functions: Sequence[Mapping[str, Any]], expected: Mapping[str, Any], calls: Sequence[ToolCall]
) -> bool:
    """`functions` and `expected` (one function: its parameters with their allowed values) are BFCL's."""
    if len(calls) != 1:
        return False
    ((name, allowed_of),) = expected.items()
    arguments = _arguments(calls[0])
    if arguments is None or calls[0].name != tool_name(name):
        return False
    parameters = next(each for each in functions if each["name"] == name)["parameters"]
    if not all(required in arguments for required in parameters.get("required", ())):
        return False
    return all(
        parameter in parameters["properties"]
        and parameter in allowed_of
        and _is_allowed(value, parameters["properties"][parameter], allowed_of[parameter])
        for parameter, value in arguments.items()
    ) and all(LEFT_OUT in allowed for parameter, allowed in allowed_of.items() if parameter not in arguments)


def _arguments(call: ToolCall) -> dict[str, Any] | None:
    """None unless they are a JSON object."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _is_allowed(value: Any, schema: Mapping[str, Any], allowed: Allowed) -> bool:
    wanted = PYTHON_TYPE[schema["type"]]
    if schema["type"] == "float" and type(value) is int:
        value = float(value)
    answer_type = _answer_type(allowed)
    if type(value) is not wanted or answer_type not in (wanted, None):
        # Some answers are names of variables instead of values: another type, to be met exactly.
        return type(value) in (wanted, answer_type) and value in allowed
    if isinstance(value, str):
        return _plain(value) in [_plain(each) for each in allowed if isinstance(each, str)]
    if isinstance(value, dict):
        return any(_is_allowed_dict(value, each) for each in allowed if each != LEFT_OUT)
    if isinstance(value, list):
        return _is_allowed_list(value, schema.get("items", {}).get("type"), allowed)
    return value in allowed


def _answer_type(allowed: Allowed) -> type | None:
    return next((type(each) for each in allowed if each != LEFT_OUT), None)


def _is_allowed_list(value: list[Any], item_type: str | None, allowed: Allowed) -> bool:
    lists: list[list[Any]] = [each if isinstance(each, list) else [] for each in allowed]
    if item_type is not None:
        wanted = PYTHON_TYPE[item_type]
        if not any(
            each == LEFT_OUT or all(type(item) in (wanted, _answer_type(each)) for item in value)
            for each in allowed
        ):
            return False
        if wanted is dict:
            return any(len(value) == len(each) and all(map(_is_allowed_dict, value, each)) for each in lists)
    return _plain_items(value) in [_plain_items(each) for each in lists]


def _is_allowed_dict(value: Any, allowed_of: Any) -> bool:
    """Every key with one of its allowed values; keys that are not there must be allowed to be left out."""
    if not (isinstance(value, dict) and isinstance(allowed_of, dict)):
        return False
    return all(
        key in allowed_of and _plain_item(held) in _plain_items(allowed_of[key])
        for key, held in value.items()
    ) and all(LEFT_OUT in allowed for key, allowed in allowed_of.items() if key not in value)


def _plain_items(values: Sequence[Any]) -> list[Any]:
    return [_plain_item(each) for each in values]


def _plain_item(value: Any) -> Any:
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
