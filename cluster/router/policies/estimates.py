"""Targets with what is known of them for one call: chance of success, cost, cost per successful answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.router.view import FleetView
from cluster.types import Considered, RequestFeatures


class SuccessEstimator(Protocol):
    """In the order of some targets: P(this target answers the call well enough)."""

    def p_success(self, features: RequestFeatures) -> Sequence[float]: ...


class ProbabilityModel(Protocol):
    """`CorrectnessModel` as seen from here."""

    @property
    def models(self) -> Sequence[str]: ...

    def probabilities(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Shape (prompts, models)."""


class LearnedEstimator:
    """From the text of the call, by a model learned from labels."""

    def __init__(self, model: ProbabilityModel, columns: Sequence[str]) -> None:
        """`columns` are models of the file, one per target."""
        self._model = model
        self._at = [model.models.index(column) for column in columns]

    def p_success(self, features: RequestFeatures) -> Sequence[float]:
        found = self._model.probabilities((features.text,))[0]
        return [float(found[at]) for at in self._at]


class KnownEstimates:
    """Of one call, made elsewhere."""

    def __init__(self, p_success: Sequence[float]) -> None:
        self._p_success = p_success

    def p_success(self, features: RequestFeatures) -> Sequence[float]:  # noqa: ARG002 (protocol)
        return self._p_success


class TargetCosts:
    """What a call costs on each of some targets, in micro-USD, if it takes all output tokens that it may."""

    def __init__(self, view: FleetView, targets: Sequence[str]) -> None:
        self._pools = [view.cheapest_pool(target) for target in targets]

    def of(self, features: RequestFeatures) -> list[int]:
        prompt_tokens, sequences = features.prompt_tokens_estimate, features.sequences
        return [
            pool.price.cost_micro_usd(prompt_tokens, pool.max_tokens(features) * sequences)
            for pool in self._pools
        ]


def expected_micro_usd(cost: int, p_success: float, cost_of_failure: int) -> int:
    """Cost per successful answer: the call, and with the rest of the probability what a failure brings."""
    return cost + round((1 - p_success) * cost_of_failure)


def expected_costs(
    p_success: Sequence[float], costs: Sequence[int], wrong_answer_micro_usd: int = 0
) -> list[int]:
    """Micro-USD per successful answer of each target. After a failure the call runs again on the one that is
    likeliest to succeed."""
    best = max(range(len(costs)), key=lambda at: (p_success[at], -costs[at]))
    failure = costs[best] + wrong_answer_micro_usd
    return [expected_micro_usd(cost, p, failure) for p, cost in zip(p_success, costs, strict=True)]


def considered(
    targets: Sequence[str],
    p_success: Sequence[float],
    costs: Sequence[int],
    expected: Sequence[int],
    chosen: int,
) -> tuple[Considered, ...]:
    """In the order of the targets. The choice of the one at `chosen` was certain."""
    weighed = zip(targets, p_success, costs, expected, strict=True)
    return tuple(
        [
            Considered(target, 1.0 if at == chosen else 0.0, p, cost, cost_of_success)
            for at, (target, p, cost, cost_of_success) in enumerate(weighed)
        ]
    )
