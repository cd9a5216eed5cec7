"""What a policy answers, and the protocol of policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.record import record
from cluster.types import Considered, RequestFeatures


@record
@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy wants for an `auto` call: a tier, base model or adapter, and a short stable reason.

    `acceptable` targets are as good, in this order, where the first one is not to be had. With `verified_by`
    (the name of a cascade) the target only drafts, and refused drafts go to `escalate_to`. `considered` is
    empty where nothing was weighed: then the choice was certain.
    """

    target: str
    reason: str
    acceptable: tuple[str, ...] = ()
    considered: tuple[Considered, ...] = ()
    verified_by: str = ""
    escalate_to: str = ""

    @property
    def action(self) -> str:
        """What the decision log calls it."""
        return f"{self.target}>{self.escalate_to}" if self.verified_by else self.target

    @property
    def probability(self) -> float:
        for each in self.considered:
            if each.action == self.action:
                return each.probability
        return 1.0


class RoutingPolicy(Protocol):
    """Pure: the same features and draw give the same choice."""

    @property
    def name(self) -> str: ...

    def choose(self, features: RequestFeatures, draw: float) -> Choice:
        """`draw` is the call's own chance, uniform in [0, 1)."""
