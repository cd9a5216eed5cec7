"""Some of the cases once more, with `model: auto`: does the running cluster do what its policy would have
given on the kept answers?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from deployments.evaluation.answers import Answer
from deployments.evaluation.cases import Case
from deployments.evaluation.outcomes import is_right


def live_report(
    policy: str,
    cases: Sequence[Case],
    live: Mapping[str, Answer],
    kept: Mapping[tuple[str, str], Answer],
    large_tier: str,
) -> dict[str, Any]:
    """`live` is by case, `kept` by case and tier. Costs are those that the gateway charged. `same_score` is
    the share of cases in which the answer was as right as the kept one of the tier that answered: below 1
    where engines do not repeat themselves."""
    asked = [case for case in cases if case.id in live]
    answers = [live[case.id] for case in asked]
    right = [is_right(case, live[case.id]) for case in asked]
    before = [kept.get((case.id, live[case.id].tier)) for case in asked]
    repeated = [
        is_right(case, earlier) == now
        for case, earlier, now in zip(asked, before, right, strict=True)
        if earlier is not None
    ]
    return {
        "policy": policy,
        "n": len(asked),
        "quality": round(fmean(right), 4),
        "per_1000_usd": round(fmean(answer.cost_usd for answer in answers) * 1000, 4),
        "latency_ms_mean": round(fmean(answer.latency_ms for answer in answers)),
        "share_on_large": round(fmean(answer.tier == large_tier for answer in answers), 4),
        "reasons": dict(Counter(answer.reason for answer in answers)),
        "same_score": round(fmean(repeated), 4) if repeated else None,
    }
