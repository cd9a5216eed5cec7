"""API keys, their limits, and budgets. Only HMACs are kept; the key text exists once, when it is printed
(THREATS.md row 16).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from cluster.clock import DAY_MS
from cluster.types import PriorityClass

KEY_PREFIX = "sk-sprat-"

MAX_MICRO_USD = 2**53 - 1
"""9 billion USD: the largest amount that Lua, and so Redis, counts exactly (SCHEDULER.md 1)."""


class BudgetWindow(StrEnum):
    """How long a budget lasts. Windows are UTC; a call belongs to the window it was admitted in."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap on spend. `owner` is `tenant:NAME` or `key:ID`. A hard budget refuses when it cannot be
    checked; a soft one lets calls through while Redis is away, and they are counted afterwards."""

    owner: str
    window: BudgetWindow
    limit_micro_usd: int
    hard: bool = True


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`per_minute` is the steady rate, `burst` what may come at once (GCRA). Requests or tokens."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key or a tenant may do. None: no limit. `highest_class` bounds `x-sprat-class`."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    highest_class: PriorityClass = PriorityClass.INTERACTIVE


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key with everything that admission needs. `digest` is the hex HMAC-SHA256 of its text under
    the cluster's pepper; `key_id` is short, random and fit for logs. `budgets` are the key's and the
    tenant's."""

    digest: str
    key_id: str
    tenant: str
    name: str
    revoked: bool = False
    limits: KeyLimits = field(default_factory=KeyLimits)
    tenant_limits: KeyLimits = field(default_factory=KeyLimits)
    budgets: tuple[Budget, ...] = ()


def tenant_owner(tenant: str) -> str:
    return f"tenant:{tenant}"


def key_owner(key_id: str) -> str:
    return f"key:{key_id}"


def window_name(window: BudgetWindow, time_ms: int) -> str:
    """`day:20261122`, `month:202611` or `total`: the name of the window that a time (ms since the Unix
    epoch) falls into."""
    return _window_of_day(window, time_ms // DAY_MS)


@lru_cache(maxsize=64)
def _window_of_day(window: BudgetWindow, day: int) -> str:
    moment = datetime.fromtimestamp(day * DAY_MS // 1000, UTC)
    match window:
        case BudgetWindow.DAY:
            return moment.strftime("day:%Y%m%d")
        case BudgetWindow.MONTH:
            return moment.strftime("month:%Y%m")
        case BudgetWindow.TOTAL:
            return "total"


def new_key_text() -> str:
    """256 bits from the operating system."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_key_id() -> str:
    """48 bits: names a key in logs and on the command line, opens nothing."""
    return secrets.token_hex(6)


def digest_of(key_text: str, pepper: bytes) -> str:
    return hmac.digest(pepper, key_text.encode("utf-8", "surrogatepass"), "sha256").hex()


@lru_cache(maxsize=10_000)
def cache_salt(tenant: str, pepper: bytes) -> str:
    """Separates tenants in an engine's prefix cache: its timing tells nothing across tenants (row 11)."""
    return hmac.new(pepper, b"cache-salt:" + tenant.encode(), hashlib.sha256).hexdigest()[:32]
