"""What a policy answers, and the protocol of policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.router.view import FleetView
from cluster.types import RequestFeatures


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy wants for an `auto` call: a tier, base model or adapter, and a short stable reason."""

    target: str
    reason: str


class RoutingPolicy(Protocol):
    """Pure: the same features and view give the same choice."""

    @property
    def name(self) -> str: ...

    def choose(self, features: RequestFeatures, view: FleetView) -> Choice: ...
