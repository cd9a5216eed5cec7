"""Known topics go to their specialists; what is of no known topic goes up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from cluster.router.policies.policy import Choice, RoutingPolicy
from cluster.types import RequestFeatures

OUT_OF_SCOPE = "out_of_scope"


class Topics(Protocol):
    """`TopicModel` as seen from here."""

    def nearest(self, text: str) -> tuple[str | None, float]:
        """Topic, or None for what is out of scope, and its score."""


class EmbeddingPolicy:
    def __init__(
        self,
        name: str,
        topics: Topics,
        targets: Mapping[str, str],
        otherwise: RoutingPolicy,
    ) -> None:
        self.name = name
        self._topics = topics
        self._choices = {topic: Choice(target, f"topic:{topic}") for topic, target in targets.items()}
        self._otherwise = otherwise

    def choose(self, features: RequestFeatures, draw: float) -> Choice:
        topic, _ = self._topics.nearest(features.text)
        known = self._choices.get(topic) if topic is not None else None
        if known is not None:
            return known
        chosen = self._otherwise.choose(features, draw)
        found = OUT_OF_SCOPE if topic is None else f"topic:{topic}"
        return replace(chosen, reason=f"{found};{chosen.reason}")
