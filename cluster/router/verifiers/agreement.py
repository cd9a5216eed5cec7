"""Self-agreement: drafts of the same call that say the same are more often right (arXiv 2203.11171)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from cluster.router.verifiers.canonical import canonical
from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, refused
from cluster.router.verifiers.json_text import NotJson, parsed

ENDS = " \t\r\n.,;:!?\"'`*()[]{}…。，！？"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class AgreementVerifier:
    """`share` of `drafts` must say the same; a draft that is missing agrees with none. The first draft that
    says it is chosen."""

    name: ClassVar[str] = "agreement"
    needs_logprobs: ClassVar[bool] = False

    drafts: int
    share: float

    def judge(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        said = [_said(each) for each in (draft, *draft.others)]
        (most, times), *_ = Counter(said).most_common(1)  # the earlier one, of two as frequent ones
        if times / max(self.drafts, len(said)) < self.share:
            return refused(f"agreement:share<{self.share:.2f}")
        return Verdict(accepted=True, reason=ACCEPTED.reason, chosen=said.index(most))

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        return ACCEPTED


def _said(draft: Draft) -> tuple[str, ...]:
    """Without what does not change the meaning. Calls of tools may come in any order."""
    calls = sorted(f"{call.name} {_meaning(call.arguments)}" for call in draft.tool_calls)
    return (_meaning(draft.text), *calls)


def _meaning(text: str) -> str:
    try:
        return canonical(parsed(text))
    except (NotJson, RecursionError):
        return " ".join(text.casefold().split()).strip(ENDS)
