"""How sure the engine was of its tokens: a cheap sign of a wrong answer, and only a sign. Calibrate it with
labels of your own calls before you trust a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cluster.config.verifiers import ConfidenceVerifierConfig
from cluster.router.calibration import Calibration
from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, refused


@dataclass(frozen=True, slots=True)
class ConfidenceVerifier:
    """Bounds that are None are not looked at."""

    name: ClassVar[str] = "confidence"
    needs_logprobs: ClassVar[bool] = True

    mean_logprob: float | None
    min_logprob: float | None
    min_p: float | None
    calibration: Calibration | None

    @classmethod
    def of(cls, config: ConfidenceVerifierConfig) -> ConfidenceVerifier:
        points = np.array(config.calibration)
        calibration = Calibration(points[:, 0], points[:, 1]) if config.calibration else None
        return cls(config.mean_logprob, config.min_logprob, config.min_p, calibration)

    def judge(self, draft: Draft, expected: Expected) -> Verdict:  # noqa: ARG002
        logprobs = draft.token_logprobs
        if not logprobs:
            return refused("confidence:no_logprobs")
        mean = sum(logprobs) / len(logprobs)
        # "not above" also catches NaN.
        if self.mean_logprob is not None and not mean >= self.mean_logprob:
            return refused(f"confidence:mean<{self.mean_logprob:.2f}")
        if self.min_logprob is not None and not all(each >= self.min_logprob for each in logprobs):
            return refused(f"confidence:min<{self.min_logprob:.2f}")
        if self.calibration is None:
            return ACCEPTED
        p_right = float(self.calibration(np.array([mean]))[0])
        if self.min_p is not None and not p_right >= self.min_p:
            return Verdict(accepted=False, reason=f"confidence:p<{self.min_p:.2f}", confidence=p_right)
        return Verdict(accepted=True, reason=ACCEPTED.reason, confidence=p_right)

    def judge_beginning(self, draft: Draft, expected: Expected) -> Verdict:
        """The tokens so far, by the same bounds."""
        return self.judge(draft, expected)


def fit_confidence(scores: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """Points for `calibration` in the YAML, from drafts whose mean logprobs and correctness are known: by
    isotonic regression. Raises ValueError where they do not fit together."""
    found: NDArray[np.float64] = np.asarray(scores, dtype=float)
    labels: NDArray[np.bool_] = np.asarray(right, dtype=bool)
    if not len(found) or len(found) != len(labels) or not np.isfinite(found).all():
        raise ValueError("give as many labels as scores, at least one, and finite scores")
    # Right ones first among equal scores, so that these become one step and not several at one place.
    order = np.lexsort((~labels, found))
    fitted = Calibration.of(found[order], labels[order])
    return list(zip(fitted.scores.tolist(), fitted.shares.tolist(), strict=True))
