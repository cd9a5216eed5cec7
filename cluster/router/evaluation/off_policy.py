"""What another policy would have been worth, from the log of the one that ran.

Each logged call has an action (its `target`), the probability with which that was chosen, and perhaps a
reward: the score of its outcome, 0 to 1. A target policy gives its own probabilities for the same call; the
ratio of the two is the call's weight.

ips    mean of weight times reward (Horvitz and Thompson, 1952): unbiased, with a large variance
snips  the same over the sum of the weights (Swaminathan and Joachims, 2015)
dr     what a model of the reward says of the target policy, corrected by the weighted errors of the model
       (Dudik, Langford and Li, 2011): right if either model or probabilities are; the model is the logged
       P(success)

All three need that whatever the target policy may choose had a chance in the log. Where it had none, nothing
in the log says what would have come of it, and no value is given.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.decision_log import LoggedDecision
from cluster.router.evaluation.curves import percentile_interval
from cluster.router.folds import part_of_rows

Floats = NDArray[np.float64]
Estimator = Callable[["Sample"], float]

SAMPLES = 1_000
PARTS = 5
FEW = 100
"""Calls, by the effective sample size: below it a bootstrap interval is too narrow."""

SMALLEST_MASS = 1e-9


class TargetPolicy(Protocol):
    """A policy as far as it can be replayed from the log, which holds no text."""

    @property
    def name(self) -> str: ...

    def probabilities(self, logged: LoggedDecision) -> Mapping[str, float]:
        """Action → probability, summing to 1; empty where the log does not say enough."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Of n calls, arrays of shape (n,): weights, what was observed, and what the model says of the action
    that ran (`at_logged`) and of those of the target policy (`direct`)."""

    weights: Floats
    observed: Floats
    at_logged: Floats
    direct: Floats

    def rows(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Sample:
        return Sample(*(each[chosen] for each in (self.weights, self.observed, self.at_logged, self.direct)))


def ips(sample: Sample) -> float:
    return float(np.mean(sample.weights * sample.observed))


def snips(sample: Sample) -> float:
    """NaN where no weight is left."""
    total = float(np.sum(sample.weights))
    return float(np.sum(sample.weights * sample.observed)) / total if total else float("nan")


def doubly_robust(sample: Sample) -> float:
    return float(np.mean(sample.direct + sample.weights * (sample.observed - sample.at_logged)))


def logged_mean(sample: Sample) -> float:
    """Of the policy that ran."""
    return float(np.mean(sample.observed))


def interval(
    sample: Sample, estimator: Estimator, *, seed: int, samples: int = SAMPLES
) -> tuple[float, float]:
    """95 % percentile bootstrap over calls."""
    generator = np.random.default_rng(seed)
    count = len(sample.weights)
    found = [estimator(sample.rows(generator.integers(0, count, count))) for _ in range(samples)]
    return percentile_interval(found)


def effective_sample_size(weights: Floats) -> float:
    """Kish: how many calls of equal weight would say as much."""
    squares = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, slots=True)
class _Call:
    """What is kept of a logged call. `wanted`: the target policy's probabilities; `success` and `costs`: what
    was estimated for each action; `unsupported`: the probability of actions that had no chance in the log."""

    action: str
    propensity: float
    wanted: Mapping[str, float]
    unsupported: float
    success: Mapping[str, float]
    costs: Mapping[str, float]
    cost_micro_usd: float
    reward: float | None


def replay(
    logged: Iterable[tuple[LoggedDecision, float | None]],
    policy: TargetPolicy,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """`logged`: decisions with the score of what came of them, if that is known. Calls whose model was asked
    for by name are left out: no policy decides them. Amounts in micro-USD per call, with refused drafts."""
    pinned = 0
    calls: list[_Call] = []
    for decision, reward in logged:
        if decision.asked_for:
            pinned += 1
        else:
            calls.append(_call(decision, reward, policy.probabilities(decision)))
    judged = [call for call in calls if call.reward is not None]
    unsupported = _mean([call.unsupported for call in judged])
    rewards = _reward_sample(judged, seed)
    costs = _cost_sample(calls, seed)
    matched = rewards.rows(rewards.weights > 0)
    deterministic = bool(judged) and all(call.propensity == 1 for call in judged)

    def estimate(sample: Sample, estimator: Estimator, *, identified: bool = True) -> dict[str, Any]:
        if not identified or not len(sample.weights):
            return {"value": None, "interval": None}
        return {
            "value": estimator(sample),
            "interval": list(interval(sample, estimator, seed=seed, samples=samples)),
        }

    identified = unsupported <= SMALLEST_MASS and bool(len(matched.weights))
    cost_identified = (
        bool(costs.weights.any()) and _mean([each.unsupported for each in calls]) <= SMALLEST_MASS
    )
    best = estimate(rewards, doubly_robust, identified=identified)
    effective = effective_sample_size(rewards.weights)
    actions = Counter(call.action for call in calls)
    return {
        "policy": policy.name,
        **best,
        "estimator": "dr" if best["value"] is not None else None,
        "n": len(judged),
        "without_outcome": len(calls) - len(judged),
        "asked_for": pinned,
        "matched": len(matched.weights),
        "effective_sample_size": effective,
        "unsupported": unsupported,
        "bounds": _bounds(rewards, unsupported),
        "ips": estimate(rewards, ips, identified=identified),
        "snips": estimate(rewards, snips, identified=identified),
        "dr": best,
        "on_matched": estimate(matched, snips),
        "logged": {
            **estimate(rewards, logged_mean),
            "deterministic": deterministic,
            "targets": {action: count / len(calls) for action, count in actions.most_common()},
            "cost_micro_usd": estimate(costs, logged_mean),
        },
        "cost_micro_usd": estimate(costs, doubly_robust, identified=cost_identified),
        "warnings": _warnings(len(judged), unsupported, effective, actions, deterministic=deterministic),
    }


def _call(decision: LoggedDecision, reward: float | None, wanted: Mapping[str, float]) -> _Call:
    chances = {each.target: each.probability for each in decision.considered}
    chances[decision.target] = decision.probability
    supported = sum(share for action, share in wanted.items() if chances.get(action, 0.0) > 0)
    return _Call(
        action=decision.target,
        propensity=decision.probability,
        wanted=wanted,
        unsupported=max(0.0, 1 - supported),
        success={each.target: each.p_success for each in decision.considered if each.p_success is not None},
        costs={
            each.target: float(each.cost_micro_usd)
            for each in decision.considered
            if each.cost_micro_usd is not None
        },
        cost_micro_usd=float(decision.cost_micro_usd),
        reward=reward,
    )


def _reward_sample(calls: Sequence[_Call], seed: int) -> Sample:
    observed = np.array([call.reward for call in calls], dtype=np.float64)
    return _sample(calls, observed, [call.success for call in calls], seed)


def _cost_sample(calls: Sequence[_Call], seed: int) -> Sample:
    """What is estimated before a call supposes that it takes all output tokens that it may: scaled by what
    calls took of that."""
    observed = np.array([call.cost_micro_usd for call in calls])
    known = [(call.cost_micro_usd, call.costs[call.action]) for call in calls if call.action in call.costs]
    estimated = sum(cost for _, cost in known)
    scale = sum(cost for cost, _ in known) / estimated if estimated else 1.0
    models = [{action: cost * scale for action, cost in call.costs.items()} for call in calls]
    return _sample(calls, observed, models, seed)


def _sample(
    calls: Sequence[_Call], observed: Floats, models: Sequence[Mapping[str, float]], seed: int
) -> Sample:
    """Where a model says nothing of an action, its mean over other calls stands in."""
    means = _means_of_others(calls, observed, seed)
    at_logged, direct = np.zeros(len(calls)), np.zeros(len(calls))
    for row, (call, model) in enumerate(zip(calls, models, strict=True)):
        at_logged[row] = model[call.action] if call.action in model else means[row][call.action]
        direct[row] = sum(
            share * (model[action] if action in model else means[row][action])
            for action, share in call.wanted.items()
        )
    weights = np.array([call.wanted.get(call.action, 0.0) / call.propensity for call in calls])
    return Sample(weights, observed, at_logged, direct)


def _means_of_others(calls: Sequence[_Call], observed: Floats, seed: int) -> list[Mapping[str, float]]:
    """Per call: action → mean of what was observed with it in the other parts of the log, so that no call is
    judged by itself. The mean over all actions where an action was not seen."""
    parts = part_of_rows(len(calls), PARTS, seed=seed)
    by_part: list[Mapping[str, float]] = []
    for part in range(PARTS):
        rows = np.flatnonzero(parts != part)
        overall = float(np.mean(observed[rows])) if len(rows) else 0.0
        of_action: defaultdict[str, list[float]] = defaultdict(list)
        for row in rows:
            of_action[calls[row].action].append(float(observed[row]))
        means = {action: sum(values) / len(values) for action, values in of_action.items()}
        by_part.append(_WithDefault(means, overall))
    return [by_part[part] for part in parts]


class _WithDefault(dict[str, float]):
    def __init__(self, known: Mapping[str, float], otherwise: float) -> None:
        super().__init__(known)
        self._otherwise = otherwise

    def __missing__(self, key: str) -> float:
        return self._otherwise


def _bounds(sample: Sample, unsupported: float) -> list[float] | None:
    """Of the value, whatever would have come of what the log never tried; without the error of sampling."""
    if not len(sample.weights):
        return None
    least = ips(sample)
    return [min(1.0, max(0.0, bound)) for bound in (least, least + unsupported)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _warnings(
    judged: int, unsupported: float, effective: float, actions: Counter[str], *, deterministic: bool
) -> list[str]:
    if not judged:
        return ["no call has an outcome: there is nothing to estimate a value from (POST /v1/feedback)"]
    found = []
    if deterministic:
        found.append(
            "the logged policy left nothing to chance (every probability is 1): only calls on which both "
            "policies agree count. A policy of kind `explore` makes others comparable."
        )
    if unsupported > SMALLEST_MASS:
        seen = ", ".join(action for action, _ in actions.most_common(5))
        found.append(
            f"{unsupported:.1%} of what this policy would choose had no chance in the log, so its value is "
            f"not identified: it is between the bounds. `on_matched` is only about the calls on which both "
            f"agree. Chosen in the log: {seen}."
        )
    elif not effective:
        found.append("no call in the log did what this policy would have done")
    elif effective < FEW:
        found.append(f"few calls say something about this policy (effective sample size {effective:.0f})")
    return found
