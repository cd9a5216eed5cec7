"""What the verifiers of a cascade see of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall
from deployments.gateway.endpoints.endpoint import Body

Json = Mapping[str, Any]

ENDS = ("response.completed", "response.incomplete")


def expected_of(body: Body) -> Expected:
    answer_format = (body.get("text") or {}).get("format") or {}
    choice = body.get("tool_choice") or "auto"
    return Expected(
        schema=answer_format.get("schema"),
        tools=tuple([Tool(each["name"], each.get("parameters")) for each in body.get("tools") or ()]),
        tool_choice=choice if isinstance(choice, str) else choice["name"],
        json=answer_format.get("type") == "json_object",
    )


def draft_of(answer: Json) -> Draft:
    return _draft(answer["output"], answer)


def draft_of_events(events: Sequence[Json]) -> Draft:
    """A stream that is whole holds the answer in its last event; until then it is put together from its
    pieces."""
    items: dict[int, dict[str, Any]] = {}
    for event in events:
        kind = event["type"]
        if kind in ENDS:
            return draft_of(event["response"])
        if kind == "response.output_item.added":
            items[event["output_index"]] = dict(event["item"]) | {"content": [], "arguments": ""}
        elif kind == "response.output_text.delta":
            part = {"type": "output_text", "text": event["delta"]}
            items[event["output_index"]]["content"].append(part)
        elif kind == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
    return _draft([items[index] for index in sorted(items)], {})


def _draft(items: Iterable[Json], answer: Json) -> Draft:
    texts, calls = [], []
    for item in items:
        if item["type"] == "function_call":
            calls.append(ToolCall(item["name"], item["arguments"] or ""))
        elif item["type"] == "message":
            texts += [part["text"] for part in item["content"] if part["type"] == "output_text"]
            texts += [part["refusal"] for part in item["content"] if part["type"] == "refusal"]
    return Draft("".join(texts), tuple(calls), _finish_reason(answer, calls))


def _finish_reason(answer: Json, calls: Sequence[ToolCall]) -> str | None:
    if answer.get("status") == "incomplete":
        return "length"
    if answer.get("status") != "completed":
        return None
    return "tool_calls" if calls else "stop"
