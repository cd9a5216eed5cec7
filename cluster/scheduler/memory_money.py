"""Budgets and rate buckets in memory: the twin of `lua/_money.lua`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.types import BudgetLine, BudgetState, RateCharge, Refusal, RefusalReason


@dataclass(slots=True)
class _Window:
    """One budget in one window; `ends_ms` None: it is kept for ever."""

    ends_ms: int | None
    spent: int = 0
    held: int = 0


class Money:
    """Owner and window name a budget."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}
        self._arrivals_us: dict[str, int] = {}

    # Rates: GCRA. A bucket is its theoretical arrival time; at or before now it is full.

    def rate_refusal(self, rates: Sequence[RateCharge], now_ms: int) -> Refusal | None:
        for rate in rates:
            if rate.increment_us > rate.burst_us:
                return Refusal(RefusalReason.TOO_LARGE, 0, rate.bucket)
            over_us = (
                self._arrival_us(rate.bucket, now_ms) + rate.increment_us - now_ms * 1000 - rate.burst_us
            )
            if over_us > 0:
                return Refusal(RefusalReason.RATE, -(-over_us // 1000), rate.bucket)
        return None

    def take_rates(self, rates: Sequence[RateCharge], now_ms: int) -> None:
        for rate in rates:
            self._arrivals_us[rate.bucket] = self._arrival_us(rate.bucket, now_ms) + rate.increment_us

    def correct_rates(self, back: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Give us back to each bucket (negative: charge more)."""
        for bucket, back_us in back:
            self._arrivals_us[bucket] = self._arrival_us(bucket, now_ms) - back_us

    def _arrival_us(self, bucket: str, now_ms: int) -> int:
        return max(self._arrivals_us.get(bucket, 0), now_ms * 1000)

    # Budgets.

    def budget_refusal(self, lines: Sequence[BudgetLine], hold: int, now_ms: int) -> Refusal | None:
        for line in lines:
            state = self.state(line.owner, line.window, now_ms)
            if state.spent_micro_usd + state.held_micro_usd + hold > line.limit_micro_usd:
                return Refusal(RefusalReason.BUDGET, 0, line.name)
        return None

    def hold(self, lines: Sequence[BudgetLine], hold: int, now_ms: int) -> None:
        for line in lines:
            self._open(line, now_ms).held += hold

    def change(self, budgets: Iterable[tuple[str, str]], spent_by: int, held_by: int, now_ms: int) -> None:
        """Never below zero: a budget that was lost and rebuilt may know less than its reservations. A window
        whose time is over stays gone."""
        for owner, window in budgets:
            known = self._window(owner, window, now_ms)
            if known is not None:
                known.spent = max(0, known.spent + spent_by)
                known.held = max(0, known.held + held_by)

    def raise_spent(self, line: BudgetLine, to: int, now_ms: int) -> None:
        if to > self.state(line.owner, line.window, now_ms).spent_micro_usd:
            self._open(line, now_ms).spent = to

    def state(self, owner: str, window: str, now_ms: int) -> BudgetState:
        known = self._window(owner, window, now_ms)
        return BudgetState(known.spent, known.held) if known else BudgetState()

    def _window(self, owner: str, window: str, now_ms: int) -> _Window | None:
        known = self._windows.get((owner, window))
        if known is not None and known.ends_ms is not None and known.ends_ms <= now_ms:
            del self._windows[owner, window]
            return None
        return known

    def _open(self, line: BudgetLine, now_ms: int) -> _Window:
        known = self._window(line.owner, line.window, now_ms)
        if known is None:
            ends_ms = now_ms + line.ttl_ms if line.ttl_ms else None
            known = self._windows[line.owner, line.window] = _Window(ends_ms)
        return known
