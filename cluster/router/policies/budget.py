"""The most quality for a spend, or the least spend for a quality.

Each call goes where chance of success minus price times `lambda` is highest: for one `lambda` this is the
best assignment of all calls to targets that costs as much (Lagrange; between two targets it is a threshold).
`lambda` is found once, on prompts that the model was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.router.policies.estimates import SuccessEstimator, TargetCosts, considered, expected_costs
from cluster.router.policies.policy import Choice
from cluster.types import RequestFeatures

Floats = NDArray[np.float64]

HALVINGS = 50


class BudgetPolicy:
    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        estimator: SuccessEstimator,
        costs: TargetCosts,
        price_of_cost: float,
    ) -> None:
        """`price_of_cost` is `lambda`: chance of success that is given up to save the dearest target's
        cost."""
        self.name = name
        self._targets = targets
        self._estimator = estimator
        self._costs = costs
        self._price_of_cost = price_of_cost

    def choose(self, features: RequestFeatures, draw: float) -> Choice:  # noqa: ARG002 (protocol)
        p_success, costs = self._estimator.p_success(features), self._costs.of(features)
        dearest = max(costs) or 1
        best = max(
            range(len(costs)), key=lambda at: (p_success[at] - self._price_of_cost * costs[at] / dearest, -at)
        )
        target = self._targets[best]
        return Choice(
            target,
            f"{self.name}:{target}",
            considered=considered(self._targets, p_success, costs, expected_costs(p_success, costs), best),
        )


def price_of_cost_for_spend(p_success: Floats, costs: Floats, spend: float) -> float:
    """The least `lambda` at which the mean cost is at most `spend` times the dearest target's. `p_success`
    has shape (prompts, targets), `costs` (targets,). Raises ConfigError where the cheapest costs more."""
    relative = costs / costs.max()
    if relative.min() > spend:
        raise ConfigError(
            f"spend: {spend:g} cannot be kept: the cheapest target costs {relative.min():.2f} of the "
            "dearest. Give a larger share, or a cheaper target."
        )
    return _turn(lambda price: _mean_cost(p_success, relative, price) <= spend, relative)[1]


def price_of_cost_for_quality(p_success: Floats, costs: Floats, quality: float) -> float:
    """The largest `lambda` at which the expected share of right answers is at least `quality` times what is
    reachable without any limit."""
    relative = costs / costs.max()
    least_quality = quality * float(p_success.max(axis=1).mean())
    return _turn(lambda price: _quality(p_success, relative, price) < least_quality, relative)[0]


def _assigned(p_success: Floats, relative: Floats, price: float) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.argmax(p_success - price * relative, axis=1)
    return found


def _mean_cost(p_success: Floats, relative: Floats, price: float) -> float:
    return float(relative[_assigned(p_success, relative, price)].mean())


def _quality(p_success: Floats, relative: Floats, price: float) -> float:
    return float(p_success[np.arange(len(p_success)), _assigned(p_success, relative, price)].mean())


def _turn(holds: Callable[[float], bool], relative: Floats) -> tuple[float, float]:
    """Where a condition begins to hold that holds for all higher prices too: just below, and from where on.
    Beyond the highest price looked at every call goes to the cheapest target."""
    if holds(0.0):
        return 0.0, 0.0
    gaps = np.diff(np.unique(relative))
    low, high = 0.0, 1.0 + (1.0 / float(gaps.min()) if len(gaps) else 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high
