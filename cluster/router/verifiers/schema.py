"""JSON where JSON was asked for, valid by the schema where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, refused
from cluster.router.verifiers.json_schema import NotJudged, violation
from cluster.router.verifiers.json_text import NotJson, parsed


@dataclass(frozen=True, slots=True)
class SchemaVerifier:
    """A fenced or chatty answer is refused: the caller parses what it gets. A draft that calls tools and says
    nothing is no answer yet, so the schema is not for it."""

    name: ClassVar[str] = "schema"
    needs_logprobs: ClassVar[bool] = False

    def judge(self, draft: Draft, expected: Expected) -> Verdict:
        if expected.schema is None and not expected.json:
            return ACCEPTED
        if draft.tool_calls and not draft.text.strip():
            return ACCEPTED
        try:
            value = parsed(draft.text)
        except NotJson as error:
            return refused("schema:cut_off" if draft.is_cut_off else f"schema:{error}")
        if expected.schema is None:
            return ACCEPTED if isinstance(value, dict) else refused("schema:not_an_object")
        try:
            keyword = violation(expected.schema, value)
        except NotJudged as error:
            return refused(f"schema:{error}")
        return ACCEPTED if keyword is None else refused(f"schema:{keyword}")

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        return ACCEPTED
