"""What the limits and budgets of a key are to each of its calls: prepared once, as calls differ only in their
tokens and their day."""

from __future__ import annotations

import orjson

from cluster.clock import DAY_MS
from cluster.scheduler.scheduler import CLASS_NUMBERS
from cluster.tenants import ApiKey, BudgetWindow, KeyLimits, RateLimit, key_owner, tenant_owner, window_name
from cluster.types import BudgetLine, Candidate, PriorityClass, RateCharge

MINUTE_US = 60_000_000

WINDOW_TTL_MS = {BudgetWindow.DAY: 3 * DAY_MS, BudgetWindow.MONTH: 40 * DAY_MS, BudgetWindow.TOTAL: 0}
"""How long Redis keeps a window: until nobody settles into it any more."""

ONE_REQUEST = 1


def increment_us(cost: int, limit: RateLimit) -> int:
    """What `cost` takes from the bucket, rounded up per call: a token's share of a high rate is below 1
    us."""
    return -(-cost * MINUTE_US // limit.per_minute)


class KeyTerms:
    """Charges, corrections and refunds name the same buckets in the same order."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self.is_hard = any(budget.hard for budget in key.budgets)
        """It draws on a budget that must not be overspent."""
        self._highest_class = max(
            key.limits.highest_class, key.tenant_limits.highest_class, key=CLASS_NUMBERS.__getitem__
        )
        self._default_class = self.class_of(PriorityClass.NORMAL)
        self._request_charges: list[RateCharge] = []
        self._token_limits: list[tuple[str, RateLimit, int]] = []
        owners: tuple[tuple[str, KeyLimits], ...] = (
            (key_owner(key.key_id), key.limits),
            (tenant_owner(key.tenant), key.tenant_limits),
        )
        for owner, limits in owners:
            if limits.requests is not None:
                one = increment_us(ONE_REQUEST, limits.requests)
                self._request_charges.append(RateCharge(f"requests:{owner}", one, _burst_us(limits.requests)))
            if limits.tokens is not None:
                self._token_limits.append((f"tokens:{owner}", limits.tokens, _burst_us(limits.tokens)))
        self._day = -1
        self._lines: tuple[BudgetLine, ...] = ()
        self._notes: dict[tuple[str, str], str] = {}

    def class_of(self, wanted: PriorityClass | None) -> PriorityClass:
        """What a call asks for (`normal` if it does not), bounded by its key and tenant."""
        if wanted is None:
            return self._default_class
        return max(wanted, self._highest_class, key=CLASS_NUMBERS.__getitem__)

    def rate_charges(self, tokens: int) -> tuple[RateCharge, ...]:
        of_tokens = [
            RateCharge(bucket, increment_us(tokens, limit), burst_us)
            for bucket, limit, burst_us in self._token_limits
        ]
        return (*self._request_charges, *of_tokens)

    def rate_corrections(self, tokens: int, used: int) -> tuple[tuple[str, int], ...]:
        """What the end of a call gives back to its token buckets, in us (negative: it used more)."""
        return tuple(
            [
                (bucket, increment_us(tokens, limit) - increment_us(used, limit))
                for bucket, limit, _ in self._token_limits
            ]
        )

    def rate_refunds(self, tokens: int) -> tuple[tuple[str, int], ...]:
        """Everything back: the call never ran."""
        return tuple([(charge.bucket, charge.increment_us) for charge in self.rate_charges(tokens)])

    def budget_lines(self, now_ms: int) -> tuple[BudgetLine, ...]:
        """`now_ms` only names the windows."""
        day = now_ms // DAY_MS
        if day != self._day:
            self._lines = tuple(
                BudgetLine(
                    budget.owner,
                    window_name(budget.window, now_ms),
                    budget.limit_micro_usd,
                    WINDOW_TTL_MS[budget.window],
                )
                for budget in self.key.budgets
            )
            self._day = day
        return self._lines

    def note(self, candidate: Candidate, now_ms: int) -> str:
        """What `reap` gives back of a call whose gateway died: the beginning of its ledger entry, as JSON."""
        known = self._notes.get((candidate.pool, candidate.model))
        if known is None:
            about = {
                "tenant": self.key.tenant,
                "key_id": self.key.key_id,
                "tier": candidate.tier,
                "pool": candidate.pool,
                "model": candidate.model,
            }
            known = orjson.dumps(about).decode()[:-1] + ',"admitted_ms":'
            self._notes[candidate.pool, candidate.model] = known
        return f"{known}{now_ms}}}"


def _burst_us(limit: RateLimit) -> int:
    return limit.burst * MINUTE_US // limit.per_minute
