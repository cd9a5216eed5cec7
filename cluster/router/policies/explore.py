"""Now and then something else than what a policy would choose: without it, nothing can be learned about what
is never tried. The rate is bounded (`MAX_EXPLORATION`), and every decision tells its probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.router.policies.policy import Choice, RoutingPolicy
from cluster.types import Considered, RequestFeatures


class ExplorePolicy:
    def __init__(self, name: str, policy: RoutingPolicy, rate: float, targets: Sequence[str]) -> None:
        self.name = name
        self._policy = policy
        self._rate = rate
        self._targets = targets

    def choose(self, features: RequestFeatures, draw: float) -> Choice:
        explores = draw < self._rate
        # What is left of the draw is uniform again.
        chosen = self._policy.choose(features, 0.0 if explores else (draw - self._rate) / (1 - self._rate))
        considered = self._considered(chosen)
        if not explores:
            return replace(chosen, considered=considered)
        target = self._targets[int(draw / self._rate * len(self._targets))]
        return Choice(target, f"explore:{target}", considered=considered)

    def _considered(self, chosen: Choice) -> tuple[Considered, ...]:
        known = {each.action: each for each in chosen.considered or (Considered(chosen.action, 1.0),)}
        for target in self._targets:
            known.setdefault(target, Considered(target, 0.0))
        share = self._rate / len(self._targets)
        return tuple(
            replace(
                each,
                probability=(1 - self._rate) * each.probability
                + (share if each.action in self._targets else 0.0),
            )
            for each in known.values()
        )
