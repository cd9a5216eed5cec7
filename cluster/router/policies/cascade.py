"""A cheap draft, verified, and escalated where it is refused."""

from __future__ import annotations

from cluster.router.policies.estimates import expected_micro_usd
from cluster.router.policies.policy import Choice, RoutingPolicy
from cluster.types import Considered, RequestFeatures


class CascadePolicy:
    """What another policy chooses drafts. What it sends to the last target anyway needs no verifying."""

    def __init__(self, name: str, drafts: RoutingPolicy, escalate_to: str) -> None:
        self.name = name
        self._drafts = drafts
        self._escalate_to = escalate_to

    def choose(self, features: RequestFeatures, draw: float) -> Choice:
        draft = self._drafts.choose(features, draw)
        if draft.target == self._escalate_to or draft.verified_by:
            return draft
        last = next((each for each in draft.considered if each.action == self._escalate_to), None)
        return Choice(
            draft.target,
            f"{self.name}:{draft.reason}",
            acceptable=draft.acceptable,
            considered=tuple([self._verified(each, last) for each in draft.considered]),
            verified_by=self.name,
            escalate_to=self._escalate_to,
        )

    def _verified(self, each: Considered, last: Considered | None) -> Considered:
        """As an action of the cascade. P(success) stays the draft's own; a failure costs what follows it,
        if the verifiers see it."""
        if each is last:
            return each
        expected = each.expected_micro_usd
        if last is not None and last.cost_micro_usd is not None and each.cost_micro_usd is not None:
            expected = expected_micro_usd(
                each.cost_micro_usd, each.p_success or 0.0, last.expected_micro_usd or last.cost_micro_usd
            )
        return Considered(
            f"{each.action}>{self._escalate_to}",
            each.probability,
            each.p_success,
            each.cost_micro_usd,
            expected,
        )
