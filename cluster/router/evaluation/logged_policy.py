"""The router's own policies on logged calls: what each would have chosen, and with what probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeVar

from cluster.config import AUTO, RouterConfig
from cluster.config.policies import LabelledConfig
from cluster.decision_log import LoggedDecision
from cluster.errors import ConfigError
from cluster.router.policies.registry import Policies
from cluster.router.view import FleetView
from cluster.types import RequestFeatures

T = TypeVar("T")

ANY_DRAW = 0.5
"""A policy that leaves something to chance tells all probabilities, whatever the draw."""


class LoggedPolicy:
    """`off_policy.TargetPolicy`. P(success) is what was estimated when the call was decided; prices are those
    of the fleet that is given here."""

    def __init__(self, name: str, config: RouterConfig, view: FleetView) -> None:
        """`name` of a policy or a target. Raises ConfigError for files of policies that cannot be used."""
        self.name = name
        self._policy = Policies(config, view, _LoggedEstimates).named(name)

    def probabilities(self, logged: LoggedDecision) -> Mapping[str, float]:
        """Empty where the policy goes by estimates that were not made for this call. Raises ConfigError for a
        policy that reads what the log does not hold."""
        try:
            choice = self._policy.choose(LoggedFeatures(logged), ANY_DRAW)
        except NotEstimated:
            return {}
        except TextNotLogged:
            raise ConfigError(
                f"{self.name} goes by the text of calls, which the decision log does not hold. Replay "
                "policies that go by logged estimates (learned, budget) or by lengths, tools and tasks."
            ) from None
        if not choice.considered:
            return {choice.action: 1.0}
        return {each.action: each.probability for each in choice.considered if each.probability > 0}


class TextNotLogged(Exception):
    """A policy asked for the text of a logged call."""


class NotEstimated(Exception):
    """The log has no P(success) of a target for this call."""


class LoggedFeatures(RequestFeatures):
    """What the log holds of a call; whoever asks for its text gets TextNotLogged."""

    def __init__(self, logged: LoggedDecision) -> None:
        of_call = logged.features
        super().__init__(
            model=AUTO,
            task=_as(str, of_call.get("task")),
            conversation=_as(str, of_call.get("conversation")) or "",
            prompt_tokens_estimate=_as(int, of_call.get("prompt_tokens")) or 0,
            longest_prompt_tokens=_as(int, of_call.get("prompt_tokens")) or 0,
            sequences=_as(int, of_call.get("sequences")) or 1,
            max_tokens=_as(int, of_call.get("max_tokens")),
            has_tools=of_call.get("has_tools") is True,
            has_schema=of_call.get("has_schema") is True,
            turns=_as(int, of_call.get("turns")) or 1,
            stream=of_call.get("stream") is True,
        )
        self.p_success = {
            each.target: each.p_success for each in logged.considered if each.p_success is not None
        }

    def _no_text(self) -> NoReturn:
        raise TextNotLogged

    def _ignored(self, _value: str) -> None: ...

    system_prompt = property(_no_text, _ignored)
    question = property(_no_text, _ignored)


def _as(kind: type[T], value: object) -> T | None:
    return value if isinstance(value, kind) else None


class _LoggedEstimates:
    """`SuccessEstimator`."""

    def __init__(self, config: LabelledConfig) -> None:
        self._targets = tuple(config.targets.values())

    def p_success(self, features: RequestFeatures) -> Sequence[float]:
        if not isinstance(features, LoggedFeatures):
            raise TypeError("these estimates are only there for logged calls")
        try:
            return [features.p_success[target] for target in self._targets]
        except KeyError:
            raise NotEstimated from None
