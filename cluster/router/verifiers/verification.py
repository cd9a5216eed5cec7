"""All verifiers of a cascade as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cluster.config.verifiers import (
    AgreementVerifierConfig,
    ConfidenceVerifierConfig,
    PythonVerifierConfig,
    RefusalVerifierConfig,
    SchemaVerifierConfig,
    ToolsVerifierConfig,
    VerifierConfig,
    drafts_of,
)
from cluster.router.verifiers.agreement import AgreementVerifier
from cluster.router.verifiers.confidence import ConfidenceVerifier
from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, Verifier, refused
from cluster.router.verifiers.refusal import RefusalVerifier
from cluster.router.verifiers.schema import SchemaVerifier
from cluster.router.verifiers.tools import ToolsVerifier


class Verification:
    """All must accept, and the first refusal is the answer. Order: that of the YAML, but `agreement` first,
    since the others judge the draft that it chooses.

    `drafts` of a call are needed, with `needs_logprobs` those of their tokens. `errors` counts verifiers that
    raised, by name: their drafts are refused."""

    def __init__(self, verifiers: Sequence[Verifier], drafts: int = 1) -> None:
        self._verifiers = sorted(verifiers, key=lambda each: not isinstance(each, AgreementVerifier))
        self.drafts = drafts
        self.needs_logprobs = any(each.needs_logprobs for each in verifiers)
        self.errors: Counter[str] = Counter()

    @classmethod
    def of(cls, configs: Sequence[VerifierConfig]) -> Verification:
        """Those of kind `python` are left out: they are not pure, the gateway asks them afterwards."""
        return cls(
            [_verifier(config) for config in configs if not isinstance(config, PythonVerifierConfig)],
            drafts_of(configs),
        )

    def judge(self, draft: Draft, expected: Expected) -> Verdict:
        """Of a whole draft, with its `others` where `drafts` is more than 1."""
        chosen, confidence = 0, None
        for verifier in self._verifiers:
            verdict = self._asked(verifier, verifier.judge, draft, expected)
            confidence = confidence if verdict.confidence is None else verdict.confidence
            if not verdict.accepted:
                return Verdict(accepted=False, reason=verdict.reason, confidence=confidence, chosen=chosen)
            if verdict.chosen:
                chosen = verdict.chosen
                draft = draft.others[chosen - 1]
        return Verdict(accepted=True, reason=ACCEPTED.reason, confidence=confidence, chosen=chosen)

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:
        """Of what a stream has said so far: may that leave?"""
        for verifier in self._verifiers:
            verdict = self._asked(verifier, verifier.judge_beginning, draft, expected)
            if not verdict.accepted:
                return verdict
        return ACCEPTED

    def _asked(
        self,
        verifier: Verifier,
        judge: Callable[[Draft, Expected], Verdict],
        draft: Draft,
        expected: Expected,
    ) -> Verdict:
        try:
            return judge(draft, expected)
        except Exception:  # an answer that cannot be judged goes up, like one that is wrong
            self.errors[verifier.name] += 1
            return refused(f"{verifier.name}:error")


def _verifier(config: VerifierConfig) -> Verifier:
    match config:
        case SchemaVerifierConfig():
            return SchemaVerifier()
        case ToolsVerifierConfig():
            return ToolsVerifier()
        case ConfidenceVerifierConfig():
            return ConfidenceVerifier.of(config)
        case RefusalVerifierConfig():
            return RefusalVerifier(config.allow_cut_off)
        case AgreementVerifierConfig():
            return AgreementVerifier(config.drafts, config.share)
        case PythonVerifierConfig():
            raise TypeError("a python verifier runs in a process of its own")
