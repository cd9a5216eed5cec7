"""P(success) that is wrong is put right by outcomes, and left alone without them."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.decision_log import LoggedDecision, logged_decision
from cluster.errors import ConfigError
from cluster.router.correctness import CorrectnessModel
from cluster.router.recalibration import Correction, Observed, corrected, fit_correction, observed_on


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def outcomes(count: int, offset: float, slope: float, *, weight: float = 1.0) -> list[Observed]:
    """Of calls whose true log-odds are `offset` + `slope` x the predicted ones."""
    generator = np.random.default_rng(1)
    log_odds = generator.normal(0, 1.5, count)
    came = generator.random(count) < sigmoid(offset + slope * log_odds)
    return [Observed(*each, weight) for each in zip(sigmoid(log_odds), came.astype(float), strict=True)]


@pytest.mark.parametrize(("offset", "slope"), [(0.0, 1.0), (-1.2, 1.0), (0.5, 0.4)])
def test_what_was_wrong_is_found(offset: float, slope: float) -> None:
    found = fit_correction(outcomes(20_000, offset, slope))

    assert (found.offset, found.slope) == pytest.approx((offset, slope), abs=0.07)


def test_few_outcomes_change_little() -> None:
    all_failed = [Observed(0.9, 0.0, 1.0)] * 50

    some = fit_correction(all_failed)(np.array([0.9]))[0]

    assert 0.02 < some < 0.6
    with pytest.raises(ConfigError, match="49 outcomes are too few"):
        fit_correction(all_failed[1:])


def test_the_ranking_never_turns_around() -> None:
    perverse = [Observed(p, 1 - p, 1.0) for p in np.linspace(0.05, 0.95, 500)]

    assert fit_correction(perverse).slope > 0


def decision(
    target: str, *, p: float | None = 0.7, probability: float = 1.0, verdict: str | None = None
) -> LoggedDecision:
    considered = [{"target": target, "p_success": p, "probability": probability}]
    step = {"tier": "small", "model": "tiny", "verdict": verdict}
    fields = {"request_id": "r", "tenant": "t", "key_id": "k", "at_ms": 0, "policy": "p", "reason": "x"}
    more = {"target": target, "probability": probability, "considered": considered, "steps": [step]}
    return logged_decision(fields | more)


def test_which_calls_say_something_of_a_target() -> None:
    judged = [
        (decision("small"), 1.0),
        (decision("small", probability=0.1), 0.5),
        (decision("small", probability=0.01), 0.5),
        (decision("small"), None),
        (decision("small", p=None), 1.0),
        (decision("large"), 1.0),
        (decision("small>large", verdict="refused"), 1.0),
        (decision("small>large", verdict="accepted"), 1.0),
    ]

    assert observed_on("small", judged) == [
        Observed(0.7, 1.0, 1.0),
        Observed(0.7, 0.5, 10.0),
        Observed(0.7, 0.5, 20.0),
        Observed(0.7, 0.0, 1.0),
        Observed(0.7, 1.0, 1.0),
    ]


def test_a_model_is_corrected_where_it_was_wrong_only() -> None:
    prompts = [f"{word} {number}" for number in range(60) for word in ("sun", "rain")]
    right = np.array([[prompt.startswith("sun"), True] for prompt in prompts])
    model = CorrectnessModel.fit(("small", "large"), prompts, right, seed=0)

    lower = corrected(model, {"small": Correction(-2.0, 1.0)})

    before, after = model.probabilities(["sun 5"])[0], lower.probabilities(["sun 5"])[0]
    assert after[0] == pytest.approx(Correction(-2.0, 1.0)(before[:1])[0], abs=0.02)
    assert after[0] < before[0] - 0.1
    assert after[1] == before[1]
    assert (lower.held_out.probabilities[:, 0] < model.held_out.probabilities[:, 0]).all()
    assert model.probabilities(["sun 5"])[0][0] == before[0], "the old one is untouched"
