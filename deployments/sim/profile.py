"""How fast a simulated replica is: pure functions of a profile and of what is running.

`running` always counts the asking request itself, so it is at least 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """`prefill_tokens_per_s` and `decode_tokens_per_s` are what one request gets while it is alone;
    `math.inf` means at once. `slowdown_per_request` is the share by which every further running request
    stretches prefill and decode: 0.1 with 3 running makes each of them 1.2 times as slow."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    base_ttft_ms: float
    max_concurrency: int
    slowdown_per_request: float

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            rate = getattr(self, name)
            if not rate > 0:  # also refuses NaN
                raise ValueError(f"{name} is {rate}: use a rate above 0, or inf for 'at once'")
        for name in ("base_ttft_ms", "slowdown_per_request"):
            amount = getattr(self, name)
            if not (amount >= 0 and math.isfinite(amount)):
                raise ValueError(f"{name} is {amount}: use a finite number from 0 up")
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency is {self.max_concurrency}: use at least 1")


def at_once(max_concurrency: int = 256) -> LatencyProfile:
    """No time passes: what is left is the cost of the HTTP surface itself."""
    return LatencyProfile(
        prefill_tokens_per_s=math.inf,
        decode_tokens_per_s=math.inf,
        base_ttft_ms=0.0,
        max_concurrency=max_concurrency,
        slowdown_per_request=0.0,
    )


def slowdown(profile: LatencyProfile, running: int) -> float:
    return 1.0 + profile.slowdown_per_request * max(0, running - 1)


def ttft_s(profile: LatencyProfile, prompt_tokens: int, running: int) -> float:
    """From the start of the prefill to the first token. Waiting for a slot comes on top."""
    prefill_s = prompt_tokens / profile.prefill_tokens_per_s
    return profile.base_ttft_ms / 1000 + prefill_s * slowdown(profile, running)


def inter_token_s(profile: LatencyProfile, running: int) -> float:
    """From one token to the next of the same request."""
    return slowdown(profile, running) / profile.decode_tokens_per_s
