"""The dumb ones: what every other policy has to beat."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cluster.router.policies.policy import Choice
from cluster.types import Considered, RequestFeatures


class AlwaysPolicy:
    """One target for everything."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self._choice = Choice(target, name)

    def choose(self, features: RequestFeatures, draw: float) -> Choice:  # noqa: ARG002 (protocol)
        return self._choice


class RandomPolicy:
    """Each of the targets equally often."""

    def __init__(self, name: str, targets: Sequence[str]) -> None:
        self.name = name
        share = 1 / len(targets)
        considered = tuple(Considered(target, share) for target in targets)
        self._choices = [Choice(target, "random", considered=considered) for target in targets]

    def choose(self, features: RequestFeatures, draw: float) -> Choice:  # noqa: ARG002 (protocol)
        return self._choices[int(draw * len(self._choices))]


class PromptLengthPolicy:
    """The longer the prompt, the larger the tier."""

    def __init__(self, name: str, over_tokens: Sequence[int], tiers: Sequence[str]) -> None:
        """A prompt of more than `over_tokens[i]` tokens goes to at least the tier i + 1."""
        self.name = name
        self._over_tokens = over_tokens
        self._choices = [Choice(tier, f"prompt_length:{tier}") for tier in tiers]

    def choose(self, features: RequestFeatures, draw: float) -> Choice:  # noqa: ARG002 (protocol)
        passed = bisect_left(self._over_tokens, features.prompt_tokens_estimate)
        return self._choices[min(passed, len(self._choices) - 1)]
