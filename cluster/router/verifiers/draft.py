"""What a verifier sees, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ANY_OF_THEM = frozenset({"auto", "none", "required"})
"""Values of `Expected.tool_choice` that name no tool."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` are as the engine wrote them: text that should be a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer of a candidate, before it is the caller's. `token_logprobs` are those of the tokens that were
    sampled, in nats; None: the engine was not asked. `others` are further drafts of the same call."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    token_logprobs: tuple[float, ...] | None = None
    others: tuple[Draft, ...] = ()

    @property
    def is_cut_off(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` is the JSON schema of the arguments; None: any object."""

    name: str
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller asked for. `tool_choice` is auto, none, required or the name of a tool; with `json` the
    answer must be a JSON object, whatever is in it."""

    schema: Mapping[str, Any] | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    json: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is short and stable: `schema:not_json`. `confidence` is a calibrated P(right), where there is
    one. `chosen` is the draft that may become the answer: 0 is the first, n is `others[n - 1]`."""

    accepted: bool
    reason: str
    confidence: float | None = None
    chosen: int = 0


ACCEPTED = Verdict(accepted=True, reason="accepted")


def refused(reason: str) -> Verdict:
    return Verdict(accepted=False, reason=reason)


class Verifier(Protocol):
    """Pure, and bounded in its work whatever the caller's schemas are: it runs in the gateway's loop."""

    @property
    def name(self) -> str: ...

    @property
    def needs_logprobs(self) -> bool: ...

    def judge(self, draft: Draft, expected: Expected) -> Verdict:
        """Of a whole draft."""
        ...

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:
        """Of what a stream has said so far. Accepts what only the end can show."""
        ...
