"""The cheapest target per successful answer, among those that are nearly as good as the best."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.router.policies.estimates import SuccessEstimator, TargetCosts, considered, expected_costs
from cluster.router.policies.policy import Choice
from cluster.types import RequestFeatures


class LearnedPolicy:
    """`tolerance`: how much lower than the best a target's chance of success may be. It is what protects
    quality: by cost alone a target that is a tenth as dear would be asked whenever it is right one time in
    ten, and whoever gets the wrong answer cannot tell."""

    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        estimator: SuccessEstimator,
        costs: TargetCosts,
        *,
        tolerance: float,
        wrong_answer_micro_usd: int,
    ) -> None:
        self.name = name
        self._targets = targets
        self._estimator = estimator
        self._costs = costs
        self._tolerance = tolerance
        self._wrong_answer_micro_usd = wrong_answer_micro_usd

    def choose(self, features: RequestFeatures, draw: float) -> Choice:  # noqa: ARG002 (protocol)
        p_success = self._estimator.p_success(features)
        costs = self._costs.of(features)
        expected = expected_costs(p_success, costs, self._wrong_answer_micro_usd)
        least = max(p_success) - self._tolerance
        good_enough = [at for at, p in enumerate(p_success) if p >= least]
        good_enough.sort(key=lambda at: (expected[at], at))
        first, *others = good_enough
        target = self._targets[first]
        return Choice(
            target,
            f"{self.name}:{target}",
            acceptable=tuple([self._targets[at] for at in others]),
            considered=considered(self._targets, p_success, costs, expected, first),
        )
