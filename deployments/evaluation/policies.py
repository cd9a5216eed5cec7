"""The policies, as the gateway would run them, on cases whose answers are known.

What learns does so from the other folds only: `learned` its model, `cascade` what a draft's confidence means
and how sure is sure enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.config import ClusterConfig
from cluster.config.policies import BUILT_IN
from cluster.config.verifiers import Evidence
from cluster.router.calibration import Calibration
from cluster.router.correctness import CorrectnessModel
from cluster.router.folds import part_of_rows
from cluster.router.policies.estimates import KnownEstimates, TargetCosts
from cluster.router.policies.learned import LearnedPolicy
from cluster.router.policies.policy import RoutingPolicy
from cluster.router.policies.registry import Policies
from cluster.router.router import Router
from cluster.router.verifiers.confidence import fit_confidence
from cluster.router.view import FleetView
from cluster.types import RequestFeatures
from deployments.evaluation.cases import Suite
from deployments.evaluation.outcomes import Outcome
from deployments.evaluation.routed import Flags, Floats, KeptPairs, Routed

FOLDS = 5

TOLERANCE = 0.05
"""Chance of success that `learned` may give up for a cheaper answer (the YAML's default)."""

TOLERANCES = tuple(map(float, np.linspace(0.0, 1.0, 41)))
"""For its curve: from the likeliest model to the cheapest."""

OF_YAML = "yaml:"
"""Before the name of a policy of `router.policies`."""

MARGIN = 0.02
"""What the cascade may lose against always asking the large model, on the folds that set its threshold."""

NEVER = -1.0
"""Below every probability: a draft that no threshold accepts."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Asked:
    """The cases as the router sees them, with both models' answers. `accepted`: by cascade of the YAML, the
    small model's drafts that its verifiers accept."""

    features: tuple[RequestFeatures, ...]
    pairs: KeptPairs
    accepted: Mapping[str, Flags]


@dataclass(frozen=True, slots=True)
class Scored:
    """`policies` at their working points, `curves` over all working points of those that have a dial."""

    policies: dict[str, Routed]
    curves: dict[str, list[Routed]]


def score(asked: Asked, config: ClusterConfig, *, seed: int) -> Scored:
    """Every policy on every case. Raises ConfigError for too few cases to learn from, and for files of
    policies that cannot be used."""
    fleet = _Fleet(FleetView.of(config), asked, fall_back_up=config.router.fall_back_up)
    pairs = asked.pairs
    draws = np.random.default_rng(seed).random(len(pairs))
    named = Policies(config.router, fleet.view).named
    own = {f"{OF_YAML}{name}": name for name in config.router.policies}
    policies = {
        shown: fleet.routed([named(name)] * len(pairs), draws)
        for shown, name in ({name: name for name in BUILT_IN} | own).items()
    }
    chances = _chances_of_success(asked, seed)
    learned = {
        tolerance: fleet.routed([fleet.learned(each, tolerance) for each in chances], draws)
        for tolerance in (TOLERANCE, *TOLERANCES)
    }
    confidences = _confidences(pairs, np.arange(len(pairs)), seed)
    return Scored(
        policies={
            **policies,
            "learned": learned[TOLERANCE],
            "cascade": pairs.routed(_cascade_goes_up(pairs, seed), drafted=True),
            "oracle": pairs.routed(pairs.only_large_is_right),
        },
        curves={
            "learned": [learned[tolerance] for tolerance in TOLERANCES],
            "cascade": [
                pairs.routed(confidences < least, drafted=True) for least in (*np.unique(confidences), np.inf)
            ],
        },
    )


@dataclass(frozen=True, slots=True)
class _Fleet:
    """Asks the gateway's own router."""

    view: FleetView
    asked: Asked
    fall_back_up: bool

    def routed(self, policies: Sequence[RoutingPolicy], draws: Floats) -> Routed:
        """One policy and one draw per case."""
        drafts = dict.fromkeys(self.asked.accepted, Evidence(drafts=1, logprobs=True))
        decisions = [
            Router(self.view, policy, drafts, fall_back_up=self.fall_back_up).route(features, float(draw))
            for policy, features, draw in zip(policies, self.asked.features, draws, strict=True)
        ]
        up = [
            decision.first.tier == self.view.tiers[-1]
            if decision.cascade is None
            else not self.asked.accepted[decision.cascade.policy][row]
            for row, decision in enumerate(decisions)
        ]
        drafted = [decision.cascade is not None for decision in decisions]
        return self.asked.pairs.routed(np.array(up), drafted=np.array(drafted))

    def learned(self, chances: Floats, tolerance: float) -> RoutingPolicy:
        """For one case, whose `chances` of a right answer are known for each tier."""
        tiers = self.view.tiers
        estimator = KnownEstimates([float(chance) for chance in chances])
        costs = TargetCosts(self.view, tiers)
        return LearnedPolicy(
            "learned", tiers, estimator, costs, tolerance=tolerance, wrong_answer_micro_usd=0
        )


def _chances_of_success(asked: Asked, seed: int) -> Floats:
    """P(right) of small and large, shape (cases, 2), each case by a model that learned from other folds."""
    right = asked.pairs.right
    texts = [features.text for features in asked.features]
    chances = np.empty(right.shape)
    for inside, outside in _folds(np.arange(len(texts)), seed):
        model = CorrectnessModel.fit(
            ("small", "large"), [texts[row] for row in inside], right[inside], seed=seed
        )
        chances[outside] = model.probabilities([texts[row] for row in outside])
    return chances


def _cascade_goes_up(pairs: KeptPairs, seed: int) -> Flags:
    """What is sure enough, and what confidence means, both from the other folds. Of all thresholds that lose
    at most MARGIN there, the one that accepts most drafts."""
    small, large = pairs.right.T
    up = np.empty(len(pairs), dtype=bool)
    for inside, outside in _folds(np.arange(len(pairs)), seed):
        confidences = _confidences(pairs, inside, seed)
        least = next(
            least
            for least in (*np.unique(confidences[confidences >= 0]), np.inf)
            if np.where(confidences < least, large[inside], small[inside]).mean()
            >= large[inside].mean() - MARGIN
        )
        up[outside] = _calibrated(pairs.small, inside, outside) < least
    return up


def _confidences(pairs: KeptPairs, rows: Rows, seed: int) -> Floats:
    """Of the drafts in these rows, in their order, each calibrated on the other folds of these rows."""
    found = np.empty(len(pairs))
    for inside, outside in _folds(rows, seed):
        found[outside] = _calibrated(pairs.small, inside, outside)
    return found[rows]


def _calibrated(drafts: Sequence[Outcome], inside: Rows, outside: Rows) -> Floats:
    """P(the draft is right) by its mean logprob, for calls of tools and for text apart, learned from the rows
    `inside`; NEVER for drafts that a verifier of form refuses."""
    found = np.full(len(outside), NEVER)
    for with_tools in (True, False):
        known = [row for row in inside if _is_judged(drafts[row], with_tools=with_tools)]
        asked = [at for at, row in enumerate(outside) if _is_judged(drafts[row], with_tools=with_tools)]
        if known and asked:
            points = fit_confidence(_mean_logprobs(drafts, known), [drafts[row].right for row in known])
            calibration = Calibration(*np.array(points).T)
            found[asked] = calibration(np.array(_mean_logprobs(drafts, outside[asked])))
    return found


def _is_judged(draft: Outcome, *, with_tools: bool) -> bool:
    is_of_kind = (draft.suite is not Suite.INTENT) == with_tools
    return is_of_kind and draft.has_form and draft.mean_logprob is not None


def _mean_logprobs(drafts: Sequence[Outcome], rows: Iterable[int]) -> list[float]:
    return [logprob for row in rows if (logprob := drafts[row].mean_logprob) is not None]


def _folds(rows: Rows, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """The rows to learn from, and those that are judged then."""
    parts = part_of_rows(len(rows), FOLDS, seed=seed)
    for part in range(FOLDS):
        yield rows[parts != part], rows[parts == part]
