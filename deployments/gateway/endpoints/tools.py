"""Definitions of tools, in the three dialects. Their parameters are schemas; descriptions are prompt text."""

from __future__ import annotations

from typing import Any

from deployments.gateway.endpoints.checks import Check, boolean, closed, list_of, one_of, string, symbol
from deployments.gateway.endpoints.json_schema import json_schema

MAX_TOOLS = 128


def _chat_tool(value: Any, name: str) -> None:
    closed(value, name, {"type": _FUNCTION, "function": _function}, ("type", "function"))


def _function(value: Any, name: str) -> None:
    closed(value, name, _FUNCTION_FIELDS, ("name",))


def _response_tool(value: Any, name: str) -> None:
    closed(value, name, {"type": _FUNCTION, **_FUNCTION_FIELDS}, ("type", "name"))


def _anthropic_tool(value: Any, name: str) -> None:
    closed(value, name, _ANTHROPIC_FIELDS, ("name", "input_schema"))


def _named(value: Any, name: str) -> None:
    closed(value, name, {"name": symbol}, ("name",))


def chat_tool_choice(value: Any, name: str) -> None:
    if isinstance(value, dict):
        closed(value, name, {"type": _FUNCTION, "function": _named}, ("type", "function"))
    else:
        _CHOICES(value, name)


def response_tool_choice(value: Any, name: str) -> None:
    if isinstance(value, dict):
        closed(value, name, {"type": _FUNCTION, "name": symbol}, ("type", "name"))
    else:
        _CHOICES(value, name)


def anthropic_tool_choice(value: Any, name: str) -> None:
    fields: dict[str, Check] = {
        "type": one_of("auto", "any", "tool", "none"),
        "name": symbol,
        "disable_parallel_tool_use": boolean,
    }
    closed(value, name, fields, ("type", "name") if _names_a_tool(value) else ("type",))


def _names_a_tool(choice: Any) -> bool:
    return isinstance(choice, dict) and choice.get("type") == "tool"


def cache_control(value: Any, name: str) -> None:
    """Anthropic's mark for its prefix cache. Ours needs none."""
    closed(value, name, {"type": one_of("ephemeral"), "ttl": one_of("5m", "1h")}, ("type",))


_CHOICES = one_of("none", "auto", "required")
_FUNCTION = one_of("function")
_FUNCTION_FIELDS: dict[str, Check] = {
    "name": symbol,
    "description": string,
    "parameters": json_schema,
    "strict": boolean,
}
_ANTHROPIC_FIELDS: dict[str, Check] = {
    "type": one_of("custom"),
    "name": symbol,
    "description": string,
    "input_schema": json_schema,
    "strict": boolean,
    "cache_control": cache_control,
}

chat_tools = list_of(_chat_tool, 1, MAX_TOOLS)
response_tools = list_of(_response_tool, 0, MAX_TOOLS)
anthropic_tools = list_of(_anthropic_tool, 0, MAX_TOOLS)
