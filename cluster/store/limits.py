"""KeyLimits ↔ the five columns that keys and tenants share."""

from __future__ import annotations

from sqlalchemy.engine import RowMapping

from cluster.tenants import KeyLimits, RateLimit
from cluster.types import PriorityClass

LIMIT_COLUMNS = (
    "requests_per_minute",
    "requests_burst",
    "tokens_per_minute",
    "tokens_burst",
    "highest_class",
)


def columns_of(limits: KeyLimits) -> dict[str, int | str | None]:
    requests, tokens = limits.requests, limits.tokens
    return {
        "requests_per_minute": requests.per_minute if requests else None,
        "requests_burst": requests.burst if requests else None,
        "tokens_per_minute": tokens.per_minute if tokens else None,
        "tokens_burst": tokens.burst if tokens else None,
        "highest_class": limits.highest_class.value,
    }


def limits_of(row: RowMapping, prefix: str = "") -> KeyLimits:
    """No limits where the row is the empty side of an outer join."""
    requests_per_minute, requests_burst, tokens_per_minute, tokens_burst, highest_class = (
        row[prefix + name] for name in LIMIT_COLUMNS
    )
    if highest_class is None:
        return KeyLimits()
    return KeyLimits(
        requests=RateLimit(requests_per_minute, requests_burst) if requests_per_minute is not None else None,
        tokens=RateLimit(tokens_per_minute, tokens_burst) if tokens_per_minute is not None else None,
        highest_class=PriorityClass(highest_class),
    )
