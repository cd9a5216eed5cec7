"""Definitions of tools, in the three dialects. Their parameters are schemas; descriptions are prompt text."""

from __future__ import annotations

from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    either,
    is_object,
    list_of,
    object_of,
    one_of,
    string,
    symbol,
)
from deployments.gateway.endpoints.json_schema import json_schema

MAX_TOOLS = 128

FUNCTION = one_of("function")
_CHOICES = one_of("none", "auto", "required")
_FUNCTION_FIELDS: dict[str, Check] = {
    "name": symbol,
    "description": string,
    "parameters": json_schema,
    "strict": boolean,
}
_NAMED = object_of({"name": symbol}, ("name",))

cache_control = object_of({"type": one_of("ephemeral"), "ttl": one_of("5m", "1h")}, ("type",))
"""Anthropic's mark for its prefix cache. Ours needs none."""

chat_tools = list_of(
    object_of({"type": FUNCTION, "function": object_of(_FUNCTION_FIELDS, ("name",))}, ("type", "function")),
    1,
    MAX_TOOLS,
)
chat_tool_choice = either(
    _CHOICES, object_of({"type": FUNCTION, "function": _NAMED}, ("type", "function")), is_object
)

response_tools = list_of(object_of({"type": FUNCTION, **_FUNCTION_FIELDS}, ("type", "name")), 0, MAX_TOOLS)
response_tool_choice = either(
    _CHOICES, object_of({"type": FUNCTION, "name": symbol}, ("type", "name")), is_object
)

anthropic_tools = list_of(
    object_of(
        {
            "type": one_of("custom"),
            "name": symbol,
            "description": string,
            "input_schema": json_schema,
            "strict": boolean,
            "cache_control": cache_control,
        },
        ("name", "input_schema"),
    ),
    0,
    MAX_TOOLS,
)
_PARALLEL: dict[str, Check] = {"disable_parallel_tool_use": boolean}
anthropic_tool_choice = either(
    object_of({"type": one_of("auto", "any", "none"), **_PARALLEL}, ("type",)),
    object_of({"type": one_of("tool"), "name": symbol, **_PARALLEL}, ("type", "name")),
    lambda choice: isinstance(choice, dict) and choice.get("type") == "tool",
)
