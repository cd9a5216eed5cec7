"""What the verifiers of a cascade see of `/v1/messages`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall
from deployments.gateway.endpoints.endpoint import Body

Json = Mapping[str, Any]

TOOL_CHOICES = {"any": "required"}
"""Where Anthropic's words are not OpenAI's."""

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
}


def expected_of(body: Body) -> Expected:
    answer_format = (body.get("output_config") or {}).get("format") or {}
    choice = body.get("tool_choice") or {"type": "auto"}
    kind = choice["type"]
    return Expected(
        schema=answer_format.get("schema"),
        tools=tuple([Tool(each["name"], each["input_schema"]) for each in body.get("tools") or ()]),
        tool_choice=choice["name"] if kind == "tool" else TOOL_CHOICES.get(kind, kind),
    )


def draft_of(answer: Json) -> Draft:
    return _draft(answer["content"], answer.get("stop_reason"))


def draft_of_events(events: Sequence[Json]) -> Draft:
    """Of the arguments of a tool, the pieces as they came: only the end shows whether they are JSON."""
    blocks: dict[int, dict[str, Any]] = {}
    stop_reason = None
    for event in events:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"]) | {"partial_json": ""}
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for name in ("text", "partial_json"):
                if name in delta:
                    block[name] = block.get(name, "") + delta[name]
        elif event["type"] == "message_delta":
            stop_reason = event["delta"].get("stop_reason")
    return _draft([blocks[index] for index in sorted(blocks)], stop_reason)


def _draft(blocks: Iterable[Json], stop_reason: str | None) -> Draft:
    texts, calls = [], []
    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] == "tool_use":
            arguments = block.get("partial_json") or orjson.dumps(block["input"]).decode()
            calls.append(ToolCall(block["name"], arguments))
    finish_reason = None if stop_reason is None else FINISH_REASONS.get(stop_reason, stop_reason)
    return Draft("".join(texts), tuple(calls), finish_reason)
