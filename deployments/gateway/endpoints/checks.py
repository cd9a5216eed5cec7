"""The closed schema of request bodies: parse once, check every field, rewrite for the engine.

An unknown field is an error, never passed through (THREATS.md rows 2 to 10). Caps are those of the
threat model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidRequest
from cluster.types import Candidate

Check = Callable[[Any, str], None]

MAX_JSON_DEPTH = 32
MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 64 * 1024
MAX_OUTPUT_TOKENS = 1_000_000
MAX_SEQUENCES = 16
MAX_BRANCHES = 256
MAX_STOPS = 4  # also the most that vLLM takes


def parse_body(raw: bytes, fields: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
    """Raises InvalidRequest that names the field."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if _deeper_than(body, MAX_JSON_DEPTH):
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
                f"The field {name!r} is not supported here.", param=name[:64], code="unknown_parameter"
            )
        if value is not None:
            check(value, name)
    if body.get("stream_options") is not None and not body.get("stream"):
        raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
    _check_token_bounds(body)
    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [None]
    if len(prompts) * (body.get("n") or 1) > MAX_SEQUENCES:
        raise InvalidRequest(
            f"prompts x n may be at most {MAX_SEQUENCES} answers in one call.",
            param="n",
            code="invalid_value",
        )
    return body


def chat_body(raw: bytes) -> dict[str, Any]:
    return parse_body(raw, CHAT_FIELDS, ("model", "messages"))


def completion_body(raw: bytes) -> dict[str, Any]:
    return parse_body(raw, COMPLETION_FIELDS, ("model", "prompt"))


def engine_body(body: Mapping[str, Any], candidate: Candidate, cache_salt: str) -> bytes:
    """What the engine gets: the candidate's model, a firm output limit, usage always, our salt."""
    rewritten = {key: value for key, value in body.items() if key not in _FOR_US and value is not None}
    rewritten["model"] = candidate.model
    rewritten["max_tokens"] = candidate.max_tokens
    rewritten["cache_salt"] = cache_salt
    if body.get("stream"):
        rewritten["stream_options"] = {"include_usage": True}
    return orjson.dumps(rewritten)


def wants_usage(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


_FOR_US = frozenset({"metadata", "max_completion_tokens", "user", "store"})


def _fail(name: str, expected: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"The field {name!r} must be {expected}.", param=name, code=code)


def text(max_length: int) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or not value or len(value) > max_length:
            raise _fail(name, f"a string of 1 to {max_length} characters")

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _fail(name, "a finite number", "invalid_type")
        if not low <= value <= high:
            raise _fail(name, f"between {low:g} and {high:g}")

    return check


def integer(low: int, high: int) -> Check:
    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _fail(name, "an integer", "invalid_type")
        if not low <= value <= high:
            raise _fail(name, f"between {low} and {high}")

    return check


def boolean(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise _fail(name, "true or false", "invalid_type")


def only_false(value: Any, name: str) -> None:
    if value is not False:
        raise _fail(name, "false or absent: it is not supported here")


def _stop(value: Any, name: str) -> None:
    sequences = [value] if isinstance(value, str) else value
    if not isinstance(sequences, list) or not 1 <= len(sequences) <= MAX_STOPS:
        raise _fail(name, f"a string or a list of 1 to {MAX_STOPS} strings")
    for each in sequences:
        text(256)(each, name)


def _stream_options(value: Any, name: str) -> None:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise _fail(name, "an object with include_usage only")
    boolean(value.get("include_usage", False), f"{name}.include_usage")


def _metadata(value: Any, name: str) -> None:
    if not isinstance(value, dict) or len(value) > 16:
        raise _fail(name, "an object of at most 16 strings")
    for key, each in value.items():
        if len(key) > 64 or not isinstance(each, str) or len(each) > 512:
            raise _fail(f"{name}.{key[:64]}", "a string of at most 512 characters, under a key of at most 64")


def _logit_bias(value: Any, name: str) -> None:
    if not isinstance(value, dict) or len(value) > 1024:
        raise _fail(name, "an object of at most 1024 token ids")
    for key, bias in value.items():
        if not key.isdecimal():
            raise _fail(name, "an object whose keys are token ids")
        number(-100, 100)(bias, name)


def _messages(value: Any, name: str) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise _fail(name, f"a list of 1 to {MAX_MESSAGES} messages")
    for index, message in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise _fail(where, "an object", "invalid_type")
        unknown = set(message) - {"role", "content", "name", "tool_calls", "tool_call_id", "refusal"}
        if unknown:
            field = min(unknown)[:64]
            raise InvalidRequest(
                f"{where}.{field} is not supported here.", param=where, code="unknown_parameter"
            )
        if message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
            raise _fail(f"{where}.role", "system, developer, user, assistant or tool")
        _content(message.get("content"), f"{where}.content", optional=message.get("role") == "assistant")
        for key in ("name", "tool_call_id", "refusal"):
            if message.get(key) is not None:
                text(512)(message[key], f"{where}.{key}")
        if message.get("tool_calls") is not None:
            _tool_calls(message["tool_calls"], f"{where}.tool_calls")


def _content(value: Any, name: str, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise _fail(name, "a string or a list of text parts", "invalid_type")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{name}: only text parts are supported here.", param=name, code="invalid_value"
            )
        if set(part) - {"type", "text"}:
            raise InvalidRequest(
                f"{name}: a text part has type and text only.", param=name, code="unknown_parameter"
            )


def _tool_calls(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _fail(name, f"a list of at most {MAX_TOOLS} calls")
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or set(function) - {"name", "arguments"}:
            raise _fail(f"{name}.function", "an object with name and arguments only")
        if set(call) - {"id", "type", "function", "index"}:
            raise _fail(name, "a list of {id, type, function: {name, arguments}}")
        if not isinstance(function.get("name"), str) or not isinstance(function.get("arguments", ""), str):
            raise _fail(f"{name}.function", "an object with the strings name and arguments")


def _tools(value: Any, name: str) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise _fail(name, f"a list of 1 to {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or set(tool) - {"type", "function"}
        ):
            raise _fail(f"{name}[{index}]", "an object {type: function, function: {…}}")
        if set(function) - {"name", "description", "parameters", "strict"}:
            raise _fail(
                f"{name}[{index}].function", "an object with name, description, parameters, strict only"
            )
        text(64)(function.get("name"), f"{name}[{index}].function.name")
    _bounded_json(value, name)


def _tool_choice(value: Any, name: str) -> None:
    if value in ("none", "auto", "required"):
        return
    if not isinstance(value, dict) or value.get("type") != "function" or set(value) - {"type", "function"}:
        raise _fail(name, "none, auto, required or {type: function, function: {name}}")
    function = value.get("function")
    text(64)(function.get("name") if isinstance(function, dict) else None, f"{name}.function.name")


def _response_format(value: Any, name: str) -> None:
    kinds = ("text", "json_object", "json_schema")
    if not isinstance(value, dict) or value.get("type") not in kinds or set(value) - {"type", "json_schema"}:
        raise _fail(name, "an object with type text, json_object or json_schema")
    if value["type"] == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or set(schema) - {"name", "description", "schema", "strict"}:
            raise _fail(f"{name}.json_schema", "an object with name, description, schema, strict only")
        text(64)(schema.get("name"), f"{name}.json_schema.name")
        if not isinstance(schema.get("schema"), dict):
            raise _fail(f"{name}.json_schema.schema", "a JSON schema object")
    _bounded_json(value, name)


def _bounded_json(value: Any, name: str) -> None:
    """Schemas are compiled to grammars by the engine: size, depth and regular expressions are capped."""
    if len(orjson.dumps(value)) > MAX_SCHEMA_BYTES:
        raise _fail(name, f"at most {MAX_SCHEMA_BYTES} bytes")
    if _deeper_than(value, 16):
        raise _fail(name, "nested at most 16 levels")
    if any(len(pattern) > 256 for pattern in _patterns(value)):
        raise _fail(name, "a schema whose regular expressions have at most 256 characters")
    if _branches(value) > MAX_BRANCHES:
        raise _fail(name, f"a schema with at most {MAX_BRANCHES} alternatives (anyOf, oneOf, allOf, enum)")


def _patterns(value: Any) -> list[str]:
    """The regular expressions of a schema: values of `pattern`, keys of `patternProperties`."""
    if isinstance(value, dict):
        own = [value["pattern"]] if isinstance(value.get("pattern"), str) else []
        keyed = value.get("patternProperties")
        own += list(keyed) if isinstance(keyed, dict) else []
        return own + [pattern for each in value.values() for pattern in _patterns(each)]
    if isinstance(value, list):
        return [pattern for each in value for pattern in _patterns(each)]
    return []


def _branches(value: Any) -> int:
    if isinstance(value, dict):
        own = sum(len(value[key]) for key in BRANCHING if isinstance(value.get(key), list))
        return own + sum(map(_branches, value.values()))
    return sum(map(_branches, value)) if isinstance(value, list) else 0


BRANCHING = ("anyOf", "oneOf", "allOf", "enum")


def _prompt(value: Any, name: str) -> None:
    if isinstance(value, str) and value:
        return
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 16
        or not all(isinstance(e, str) and e for e in value)
    ):
        raise _fail(name, "a non-empty string, or a list of 1 to 16 of them")


def _check_token_bounds(body: Mapping[str, Any]) -> None:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    least = body.get("min_tokens")
    if limit is not None and least is not None and least > limit:
        raise InvalidRequest(
            "min_tokens must not be above max_tokens.", param="min_tokens", code="invalid_value"
        )


def _deeper_than(value: Any, levels: int) -> bool:
    if levels < 0:
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(child, (dict, list)) and _deeper_than(child, levels - 1) for child in children)


_COMMON_FIELDS: dict[str, Check] = {
    "model": text(128),
    "max_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "min_tokens": integer(0, MAX_OUTPUT_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0.0001, 1),
    "top_k": integer(-1, 100_000),
    "min_p": number(0, 1),
    "n": integer(1, 8),
    "stop": _stop,
    "stream": boolean,
    "stream_options": _stream_options,
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 10),
    "seed": integer(-(2**63), 2**63 - 1),
    "logit_bias": _logit_bias,
    "user": text(256),
    "metadata": _metadata,
    "store": only_false,
    "response_format": _response_format,
}

CHAT_FIELDS: dict[str, Check] = _COMMON_FIELDS | {
    "messages": _messages,
    "max_completion_tokens": integer(1, MAX_OUTPUT_TOKENS),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": boolean,
}

COMPLETION_FIELDS: dict[str, Check] = _COMMON_FIELDS | {
    "prompt": _prompt,
    "logprobs": integer(0, 20),
    "echo": only_false,
}
