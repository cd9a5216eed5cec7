"""Estimates of policies that did not run, against simulated logs in which their worth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from cluster.decision_log import LoggedDecision, logged_decision
from cluster.router.evaluation.off_policy import (
    Sample,
    doubly_robust,
    effective_sample_size,
    interval,
    ips,
    replay,
    snips,
)

CALLS = 400
LOGS = 200
COST_MICRO_USD = {"small": 10, "large": 100}
LOGGED_LARGE = 0.5
TRUE_VALUE = {"always_small": 0.55, "always_large": 0.8}

Model = Callable[[float], Mapping[str, float | None]]
"""Difficulty of a call → what the log says of P(success)."""


class Always:
    def __init__(self, target: str) -> None:
        self.name = f"always_{target}"
        self._target = target

    def probabilities(self, _logged: LoggedDecision) -> Mapping[str, float]:
        return {self._target: 1.0}


class Undecided:
    name = "undecided"

    def probabilities(self, _logged: LoggedDecision) -> Mapping[str, float]:
        return {}


def p_right(difficulty: float) -> dict[str, float]:
    """Means over difficulties from 0 to 1: TRUE_VALUE."""
    return {"small": 1 - 0.9 * difficulty, "large": 0.9 - 0.2 * difficulty}


def right_model(difficulty: float) -> Mapping[str, float | None]:
    return p_right(difficulty)


def wrong_model(difficulty: float) -> Mapping[str, float | None]:
    return {"small": 0.9 * difficulty, "large": 0.2 * difficulty}


def no_model(_difficulty: float) -> Mapping[str, float | None]:
    return {"small": None, "large": None}


def decision(action: str, probability: float, considered: Any = (), **changes: Any) -> LoggedDecision:
    return logged_decision(
        {
            "request_id": "req-" + "0" * 24,
            "tenant": "acme",
            "key_id": "k1",
            "at_ms": 1,
            "policy": "explore",
            "reason": f"explore:{action}",
            "target": action,
            "probability": probability,
            "considered": considered,
            "steps": [{"tier": action, "model": action, "cost_micro_usd": COST_MICRO_USD[action]}],
        }
        | changes
    )


def simulated_log(
    seed: int, model: Model, *, calls: int = CALLS, p_large: float = LOGGED_LARGE
) -> list[tuple[LoggedDecision, float]]:
    """The harder a call, the likelier it goes up: the mean reward of either action alone is biased."""
    generator = np.random.default_rng(seed)
    log = []
    for difficulty in generator.random(calls):
        chances = {"large": 0.1 + 2 * (p_large - 0.1) * difficulty}
        chances["small"] = 1 - chances["large"]
        action = "large" if generator.random() < chances["large"] else "small"
        reward = float(generator.random() < p_right(difficulty)[action])
        said = model(difficulty)
        considered = [
            {"target": each, "probability": chances[each], "p_success": said[each]} for each in chances
        ]
        log.append((decision(action, chances[action], considered), reward))
    return log


def simulated_sample(seed: int, model: str, target: str) -> Sample:
    """The same as arrays, for many logs."""
    generator = np.random.default_rng(seed)
    difficulty = generator.random(CALLS)
    chance_of_large = 0.1 + 2 * (LOGGED_LARGE - 0.1) * difficulty
    is_large = generator.random(CALLS) < chance_of_large
    right = {"small": 1 - 0.9 * difficulty, "large": 0.9 - 0.2 * difficulty}
    reward = generator.random(CALLS) < np.where(is_large, right["large"], right["small"])
    agrees = is_large if target == "large" else ~is_large
    propensity = np.where(is_large, chance_of_large, 1 - chance_of_large)
    said = right if model == "right" else {name: 1 - p for name, p in right.items()}
    return Sample(
        weights=agrees / propensity,
        observed=reward.astype(float),
        at_logged=np.where(is_large, said["large"], said["small"]),
        direct=said[target],
    )


ESTIMATORS = {"ips": ips, "snips": snips, "dr": doubly_robust}


@pytest.mark.parametrize("target", ["small", "large"])
@pytest.mark.parametrize("model", ["right", "wrong"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_hold_the_true_value_about_as_often_as_they_say(name: str, model: str, target: str) -> None:
    covered = 0
    for seed in range(LOGS):
        sample = simulated_sample(seed, model, target)
        low, high = interval(sample, ESTIMATORS[name], seed=seed, samples=200)
        covered += low <= TRUE_VALUE[f"always_{target}"] <= high

    assert 0.90 <= covered / LOGS <= 0.99


def values(name: str, model: str, target: str) -> np.ndarray:
    return np.array([ESTIMATORS[name](simulated_sample(seed, model, target)) for seed in range(1000)])


@pytest.mark.parametrize("target", ["small", "large"])
@pytest.mark.parametrize("model", ["right", "wrong"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_right_on_average_also_with_a_wrong_model(name: str, model: str, target: str) -> None:
    found = values(name, model, target)

    assert found.mean() == pytest.approx(TRUE_VALUE[f"always_{target}"], abs=4 * found.std() / 1000**0.5)


def test_a_good_model_makes_the_doubly_robust_estimate_steadier() -> None:
    assert values("dr", "right", "large").std() < 0.7 * values("ips", "right", "large").std()


@pytest.mark.parametrize("model", [right_model, wrong_model, no_model])
@pytest.mark.parametrize("target", ["small", "large"])
def test_a_log_is_replayed_to_the_true_value(target: str, model: Model) -> None:
    """Easy calls went down, so the mean over those that did is 0.12 too high."""
    report = replay(simulated_log(5, model, calls=4_000), Always(target), samples=100)

    for name in ESTIMATORS:
        assert report[name]["value"] == pytest.approx(TRUE_VALUE[f"always_{target}"], abs=0.06)
        low, high = report[name]["interval"]
        assert low < report[name]["value"] < high


def test_the_mean_of_what_ran_is_that_of_the_logged_policy() -> None:
    log = simulated_log(1, right_model)

    report = replay(log, Always("large"), samples=50)

    assert report["logged"]["value"] == pytest.approx(np.mean([reward for _, reward in log]))
    assert report["logged"]["cost_micro_usd"]["value"] == pytest.approx(
        np.mean([each.cost_micro_usd for each, _ in log])
    )
    assert report["n"] == CALLS
    assert report["matched"] == sum(each.target == "large" for each, _ in log)
    assert (report["value"], report["interval"]) == (report["dr"]["value"], report["dr"]["interval"])
    assert report["estimator"] == "dr"


@pytest.mark.parametrize(("target", "expected"), [("small", 10), ("large", 100)])
def test_the_cost_of_another_policy_is_estimated_the_same_way(target: str, expected: float) -> None:
    report = replay(simulated_log(2, no_model), Always(target), samples=50)

    assert report["cost_micro_usd"]["value"] == pytest.approx(expected)


def test_estimated_costs_are_scaled_by_what_calls_took() -> None:
    """Before a call, all tokens that it may take are counted: here twice what it took."""
    considered = [
        {"target": "small", "probability": 0.5, "cost_micro_usd": 20},
        {"target": "large", "probability": 0.5, "cost_micro_usd": 200},
    ]
    log = [(decision(action, 0.5, considered), 1.0) for action in ["small"] * 30 + ["large"]]

    report = replay(log, Always("large"), samples=10)

    assert report["cost_micro_usd"]["value"] == pytest.approx(100)


def test_a_log_without_chance_identifies_nothing_else() -> None:
    log = [(decision("small", 1.0), 1.0)] * 30 + [(decision("large", 1.0), 0.0)] * 70

    report = replay(log, Always("small"), samples=50)

    for name in ("ips", "snips", "dr"):
        assert report[name] == {"value": None, "interval": None}
    assert (report["value"], report["estimator"], report["cost_micro_usd"]["value"]) == (None, None, None)
    assert report["logged"]["deterministic"]
    assert report["unsupported"] == pytest.approx(0.7)
    assert report["bounds"] == pytest.approx([0.3, 1.0])
    assert report["on_matched"]["value"] == 1.0
    assert report["matched"] == 30
    assert "left nothing to chance" in report["warnings"][0]
    assert "70.0%" in report["warnings"][1]
    assert "not identified" in report["warnings"][1]


def test_the_policy_that_ran_is_identified_without_chance() -> None:
    log = [(decision("small", 1.0), float(number % 2)) for number in range(200)]

    report = replay(log, Always("small"), samples=50)

    assert report["value"] == pytest.approx(0.5)
    assert report["effective_sample_size"] == pytest.approx(200)
    assert len(report["warnings"]) == 1


def test_calls_without_outcome_count_for_cost_alone() -> None:
    log = [(decision("small", 1.0), 1.0), (decision("small", 1.0, steps=[]), None)]

    report = replay(log, Always("small"), samples=10)

    assert (report["n"], report["without_outcome"], report["value"]) == (1, 1, 1.0)
    assert report["logged"]["cost_micro_usd"]["value"] == 5


@pytest.mark.parametrize("reason", ["model:small", "header:small"])
def test_calls_that_asked_for_their_model_are_left_out(reason: str) -> None:
    log = [(decision("small", 1.0, reason=reason), 0.0), (decision("small", 1.0), 1.0)]

    report = replay(log, Always("small"), samples=10)

    assert (report["n"], report["asked_for"], report["value"]) == (1, 1, 1.0)


def test_a_policy_that_cannot_say_is_not_identified() -> None:
    report = replay([(decision("small", 0.5), 1.0)] * 5, Undecided(), samples=10)

    assert (report["value"], report["unsupported"], report["matched"]) == (None, 1.0, 0)


def test_what_had_a_chance_but_never_ran_has_no_value() -> None:
    considered = [{"target": each, "probability": 0.5} for each in ("small", "large")]

    report = replay([(decision("small", 0.5, considered), 1.0)] * 5, Always("large"), samples=10)

    assert (report["value"], report["ips"]["value"], report["cost_micro_usd"]["value"]) == (None, None, None)
    assert (report["unsupported"], report["matched"]) == (0, 0)
    assert report["warnings"] == ["no call in the log did what this policy would have done"]


def test_few_effective_calls_are_told_of() -> None:
    report = replay(simulated_log(3, right_model, calls=50), Always("large"), samples=10)

    assert "effective sample size" in report["warnings"][0]


def test_an_empty_log() -> None:
    report = replay([], Always("small"))

    assert (report["n"], report["value"], report["bounds"]) == (0, None, None)
    assert "no call has an outcome" in report["warnings"][0]


def test_the_same_seed_gives_the_same_report() -> None:
    log = simulated_log(4, right_model)

    reports = [replay(log, Always("large"), seed=seed, samples=50) for seed in (1, 1, 2)]

    assert reports[0] == reports[1]
    assert reports[0]["interval"] != reports[2]["interval"]


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.array([2.0, 2.0, 0.0])) == pytest.approx(2)
    assert effective_sample_size(np.array([0.0])) == 0
