"""From the router's section of the YAML to its policy. Files of policies are read here, once; what reads them
is imported when it is needed: scipy takes half a second and 40 MB."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.config import RouterConfig
from cluster.config.policies import (
    ALWAYS_LARGE,
    ALWAYS_SMALL,
    BudgetConfig,
    CascadeConfig,
    EmbeddingConfig,
    ExploreConfig,
    LabelledConfig,
    LearnedConfig,
    PolicyConfig,
    PromptLengthConfig,
    RandomConfig,
    RulesConfig,
)
from cluster.cost import MICRO_USD_PER_USD
from cluster.errors import ConfigError
from cluster.router.policies.baselines import AlwaysPolicy, PromptLengthPolicy, RandomPolicy
from cluster.router.policies.budget import (
    BudgetPolicy,
    price_of_cost_for_quality,
    price_of_cost_for_spend,
)
from cluster.router.policies.cascade import CascadePolicy
from cluster.router.policies.embedding import EmbeddingPolicy
from cluster.router.policies.estimates import LearnedEstimator, SuccessEstimator, TargetCosts
from cluster.router.policies.explore import ExplorePolicy
from cluster.router.policies.learned import LearnedPolicy
from cluster.router.policies.policy import RoutingPolicy
from cluster.router.policies.rules import RulesPolicy
from cluster.router.view import FleetView
from cluster.types import RequestFeatures

if TYPE_CHECKING:
    from cluster.router.correctness import CorrectnessModel

TYPICAL_CALL = RequestFeatures(
    model="", prompt_tokens_estimate=1000, longest_prompt_tokens=1000, max_tokens=200
)
"""For prices of targets beside each other, before there is a call."""

EstimatorOf = Callable[[LabelledConfig], SuccessEstimator]


class Policies:
    """Builds policies by name. Raises ConfigError for files that cannot be used."""

    def __init__(
        self, config: RouterConfig, view: FleetView, estimator_of: EstimatorOf | None = None
    ) -> None:
        """`estimator_of`: instead of the learned models of the files."""
        self._config = config
        self._view = view
        self._estimator_of = estimator_of or self._learned_estimator
        self._models: dict[str, CorrectnessModel] = {}

    def named(self, name: str) -> RoutingPolicy:
        """One of `router.policies`, one of the built-in ones, or a target: always that."""
        return self._policy(name) or AlwaysPolicy(name, name)

    def _policy(self, name: str) -> RoutingPolicy | None:
        configured = self._config.policies.get(name)
        if configured is not None:
            try:
                return self._build(name, configured)
            except ConfigError as error:
                raise ConfigError(f"router.policies.{name}: {error.message}") from None
        tiers = self._view.tiers
        match name:
            case "rules":
                config = self._config
                return RulesPolicy(name, config.rules, self._policy, config.default_tier)
            case "random":
                return RandomPolicy(name, tiers)
            case "prompt_length":
                return PromptLengthPolicy(name, PromptLengthConfig(kind="prompt_length").over_tokens, tiers)
            case _ if name in (ALWAYS_SMALL, ALWAYS_LARGE):
                return AlwaysPolicy(name, tiers[0] if name == ALWAYS_SMALL else tiers[-1])
        return None

    def _build(self, name: str, config: PolicyConfig) -> RoutingPolicy:
        tiers = self._view.tiers
        match config:
            case RulesConfig():
                return RulesPolicy(name, config.rules, self._policy, config.otherwise)
            case RandomConfig():
                return RandomPolicy(name, config.targets or tiers)
            case PromptLengthConfig():
                return PromptLengthPolicy(name, config.over_tokens, tiers)
            case LearnedConfig():
                targets = list(config.targets.values())
                return LearnedPolicy(
                    name,
                    targets,
                    self._estimator_of(config),
                    TargetCosts(self._view, targets),
                    tolerance=config.tolerance,
                    wrong_answer_micro_usd=round(config.wrong_answer_usd * MICRO_USD_PER_USD),
                )
            case BudgetConfig():
                return self._budget(name, config)
            case EmbeddingConfig():
                from cluster.router.embedding.topics import TopicModel

                topics = TopicModel.load(Path(config.topics))
                _check_known("topic", config.targets, topics.topics, config.topics)
                return EmbeddingPolicy(name, topics, config.targets, self.named(config.otherwise))
            case CascadeConfig():
                return CascadePolicy(name, self.named(config.policy), config.to)
            case ExploreConfig():
                return ExplorePolicy(name, self.named(config.policy), config.rate, config.targets or tiers)

    def _budget(self, name: str, config: BudgetConfig) -> BudgetPolicy:
        targets = list(config.targets.values())
        costs = TargetCosts(self._view, targets)
        model = self._model(config)
        columns = [model.models.index(column) for column in config.targets]
        held_out = model.held_out.probabilities[:, columns]
        relative = np.array(costs.of(TYPICAL_CALL), dtype=float)
        if config.spend is not None:
            price = price_of_cost_for_spend(held_out, relative, config.spend)
        else:
            price = price_of_cost_for_quality(held_out, relative, config.quality or 1.0)
        return BudgetPolicy(name, targets, self._estimator_of(config), costs, price)

    def _learned_estimator(self, config: LabelledConfig) -> SuccessEstimator:
        return LearnedEstimator(self._model(config), list(config.targets))

    def _model(self, config: LabelledConfig) -> CorrectnessModel:
        from cluster.router.correctness import CorrectnessModel

        model = self._models.get(config.model)
        if model is None:
            model = self._models[config.model] = CorrectnessModel.load(Path(config.model))
        _check_known("label column", config.targets, model.models, config.model)
        return model


def _check_known(what: str, named: Mapping[str, str], known: Sequence[str], file: str) -> None:
    unknown = [each for each in named if each not in known]
    if unknown:
        raise ConfigError(f"{file} knows no {what} {unknown[0]!r}; it knows {', '.join(known)}.")
