"""Calls of tools: known, well-formed, and as many as `tool_choice` wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cluster.router.verifiers.draft import ACCEPTED, ANY_OF_THEM, Draft, Expected, ToolCall, Verdict, refused
from cluster.router.verifiers.json_schema import Budget, NotJudged, violation
from cluster.router.verifiers.json_text import NotJson, parsed

CALL_MARKS = ("<tool_call>", "<function=", "[TOOL_CALLS]", "<|python_tag|>")
"""How models begin a call. In the text of an answer it means that the engine could not read the call."""


@dataclass(frozen=True, slots=True)
class ToolsVerifier:
    name: ClassVar[str] = "tools"
    needs_logprobs: ClassVar[bool] = False

    def judge(self, draft: Draft, expected: Expected) -> Verdict:
        budget = Budget()  # of all calls together: a draft may hold hundreds
        reason = _wrong_choice(draft, expected)
        for call in draft.tool_calls:
            reason = reason or _wrong_call(call, expected, budget)
        return ACCEPTED if reason is None else refused(f"tools:{reason}")

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        return ACCEPTED


def _wrong_choice(draft: Draft, expected: Expected) -> str | None:
    choice = expected.tool_choice
    if draft.tool_calls:
        if choice == "none":
            return "not_wanted"
        if choice not in ANY_OF_THEM and any(call.name != choice for call in draft.tool_calls):
            return "wrong_tool"
        return None
    if expected.tools and choice not in ("auto", "none"):
        return "missing"
    if expected.tools and choice == "auto" and _is_call(draft.text.lstrip(), expected):
        return "call_as_text"
    return None


def _is_call(text: str, expected: Expected) -> bool:
    if text.startswith(CALL_MARKS):
        return True
    if not text.startswith("{"):
        return False
    try:
        value = parsed(text)
    except NotJson:
        return False
    return {"name", "arguments"} <= value.keys() and value["name"] in [tool.name for tool in expected.tools]


def _wrong_call(call: ToolCall, expected: Expected, budget: Budget) -> str | None:
    tool = next((tool for tool in expected.tools if tool.name == call.name), None)
    if tool is None:
        return "unknown_name"
    try:
        arguments = parsed(call.arguments)
    except NotJson as error:
        return str(error)
    if not isinstance(arguments, dict):
        return "not_an_object"
    if tool.parameters is None:
        return None
    try:
        return violation(tool.parameters, arguments, budget)
    except NotJudged as error:
        return str(error)
