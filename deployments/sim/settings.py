"""Everything that shapes a simulator, fixed before it starts. Faults are set here and never by HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from deployments.sim.profile import LatencyProfile


class OutputLength(StrEnum):
    """When an answer ends. A request that states no limit always gets the drawn length."""

    LIMIT = "limit"
    """Exactly at the request's token limit: lengths are known before the run."""

    DRAWN = "drawn"
    """At a pseudo-random length from prompt and seed, cut at the request's limit."""


@dataclass(frozen=True, slots=True)
class SimSettings:
    """`models` are the names served, the base model first, then its adapters. `token` is the gateway token
    that every route asks for. `drawn_tokens` are the bounds, both included, of a drawn length.
    `embeds`: it makes embeddings and generates nothing.
    `fail_after_tokens` closes the connection after that many tokens of an answer; `refuse` answers every
    generation with 500."""

    models: tuple[str, ...]
    context_tokens: int
    profile: LatencyProfile
    token: str = field(repr=False)
    seed: int = 0
    embeds: bool = False
    output_length: OutputLength = OutputLength.LIMIT
    drawn_tokens: tuple[int, int] = (16, 256)
    fail_after_tokens: int | None = None
    refuse: bool = False

    def __post_init__(self) -> None:
        if not self.models or not all(self.models):
            raise ValueError(f"models is {self.models}: name the base model, then its adapters")
        if not self.token:
            raise ValueError("token is empty: an engine without the gateway token would serve anybody")
        if self.context_tokens < 2:
            raise ValueError(f"context_tokens is {self.context_tokens}: a prompt and an answer need 2")
        shortest, longest = self.drawn_tokens
        if not 2 <= shortest <= longest:
            raise ValueError(
                f"drawn_tokens is {self.drawn_tokens}: use (shortest, longest) with 2 <= shortest"
            )
        if self.fail_after_tokens is not None and self.fail_after_tokens < 0:
            raise ValueError(f"fail_after_tokens is {self.fail_after_tokens}: use 0 or more, or None")
