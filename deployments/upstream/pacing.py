"""How fast an upstream may be asked: its limits per minute, and what it says itself. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deployments.upstream.rate_headers import RateHeaders, Remaining

WINDOW_S = 60.0


@dataclass(slots=True)
class Charge:
    """What one call took of a window."""

    time_s: float
    amount: int
    is_over: bool = False
    """It has left the window."""


@dataclass(slots=True)
class MinuteWindow:
    """At most `limit` in any 60 seconds. More than that at once is let through when nothing else is in the
    window: no waiting would make it fit."""

    limit: int
    _charges: deque[Charge] = field(default_factory=deque)
    _total: int = 0

    def wait_s(self, amount: int, now_s: float) -> float:
        """0: it fits now."""
        while self._charges and self._charges[0].time_s <= now_s - WINDOW_S:
            oldest = self._charges.popleft()
            oldest.is_over = True
            self._total -= oldest.amount
        excess = self._total + min(amount, self.limit) - self.limit
        wait_s = 0.0
        for each in self._charges:
            if excess <= 0:
                break
            excess -= each.amount
            wait_s = each.time_s + WINDOW_S - now_s
        return wait_s

    def take(self, amount: int, now_s: float) -> Charge:
        charge = Charge(now_s, amount)
        self._charges.append(charge)
        self._total += amount
        return charge

    def correct(self, charge: Charge, amount: int) -> None:
        """To what the call took in the end."""
        if not charge.is_over:
            self._total += amount - charge.amount
            charge.amount = amount


@dataclass(slots=True)
class _Announced:
    """What the upstream said is left, less what was taken since."""

    amount: int = 0
    until_s: float = 0.0

    def learn(self, remaining: Remaining | None, now_s: float) -> None:
        if remaining is not None:
            self.amount, self.until_s = remaining.amount, now_s + remaining.reset_s

    def wait_s(self, amount: int, now_s: float) -> float:
        return self.until_s - now_s if now_s < self.until_s and self.amount < amount else 0.0


class Pacer:
    """One per replica; `share_of` replicas keep to one account's limits together."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        *,
        share_of: int = 1,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = None if requests_per_minute is None else _share(requests_per_minute, share_of)
        self._tokens = None if tokens_per_minute is None else _share(tokens_per_minute, share_of)
        self._announced_requests = _Announced()
        self._announced_tokens = _Announced()
        self._paused_until_s = 0.0
        self._clock_s = clock_s

    def wait_s(self, tokens: int) -> float:
        """Until a call of so many tokens may be sent; 0: now."""
        now_s = self._clock_s()
        waits_s = [
            self._paused_until_s - now_s,
            self._announced_requests.wait_s(1, now_s),
            self._announced_tokens.wait_s(tokens, now_s),
        ]
        if self._requests is not None:
            waits_s.append(self._requests.wait_s(1, now_s))
        if self._tokens is not None:
            waits_s.append(self._tokens.wait_s(tokens, now_s))
        return max(0.0, *waits_s)

    def take(self, tokens: int) -> Charge | None:
        """One call is sent. Its charge may be corrected; None: tokens are not counted."""
        now_s = self._clock_s()
        self._announced_requests.amount -= 1
        self._announced_tokens.amount -= tokens
        if self._requests is not None:
            self._requests.take(1, now_s)
        return None if self._tokens is None else self._tokens.take(tokens, now_s)

    def correct(self, charge: Charge | None, tokens: int) -> None:
        """To the call's usage."""
        if charge is not None and self._tokens is not None:
            self._tokens.correct(charge, tokens)

    def learn(self, headers: RateHeaders) -> None:
        now_s = self._clock_s()
        self._announced_requests.learn(headers.requests, now_s)
        self._announced_tokens.learn(headers.tokens, now_s)

    def pause(self, seconds: float) -> None:
        """The upstream said so (429)."""
        self._paused_until_s = max(self._paused_until_s, self._clock_s() + seconds)


def _share(limit: int, share_of: int) -> MinuteWindow:
    return MinuteWindow(max(1, limit // share_of))
