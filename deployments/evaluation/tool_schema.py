"""BFCL describes functions in its own dialect of JSON Schema; chat completions want the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JSON_TYPE = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",  # as BFCL's own harness has it
}
"""Types that BFCL calls otherwise than JSON Schema does."""

NOT_JSON_SCHEMA = ("optional",)


def tool_name(function_name: str) -> str:
    """OpenAI's names of functions have no dots."""
    return function_name.replace(".", "_")


def chat_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of `tools` from an entry of BFCL's `function`."""
    return {
        "type": "function",
        "function": {
            "name": tool_name(function["name"]),
            "description": function["description"],
            "parameters": json_schema(function["parameters"]),
        },
    }


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """At every depth."""
    made = {key: value for key, value in schema.items() if key not in NOT_JSON_SCHEMA}
    if "type" in made:
        made["type"] = JSON_TYPE.get(made["type"], made["type"])
    if "properties" in made:
        made["properties"] = {name: json_schema(each) for name, each in made["properties"].items()}
    if "items" in made:
        made["items"] = json_schema(made["items"])
    return made
