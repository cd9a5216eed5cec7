"""Does a draft answer at all? Empty answers, refusals, answers that were cut off."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, refused
from cluster.router.verifiers.refusal_phrases import REFUSALS

BEGINNING = 200
"""Characters. Refusals come first; later the same words are quotes or part of a text that was asked for."""

_START = r"(?:^|[.!?。！？\n])[\s*_#>-]*"  # noqa: RUF001
_REFUSAL = re.compile(_START + "(?:" + "|".join(one for each in REFUSALS.values() for one in each) + ")")


@dataclass(frozen=True, slots=True)
class RefusalVerifier:
    name: ClassVar[str] = "refusal"
    needs_logprobs: ClassVar[bool] = False

    allow_cut_off: bool = False

    def judge(self, draft: Draft, expected: Expected) -> Verdict:
        if draft.is_cut_off and not self.allow_cut_off:
            return refused("refusal:cut_off")
        if not draft.tool_calls and not draft.text.strip():
            return refused("refusal:empty")
        return self.judge_beginning(draft, expected)

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        if draft.finish_reason == "content_filter":
            return refused("refusal:content_filter")
        beginning = draft.text.lstrip()[:BEGINNING].lower().replace("’", "'")  # noqa: RUF001
        return refused("refusal:declined") if _REFUSAL.search(beginning) else ACCEPTED
