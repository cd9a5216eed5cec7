"""What an upstream says of its rate limits: `retry-after`, and OpenAI's `x-ratelimit-*`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_S = 3600.0
"""A header that asks for more is taken as this."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


@dataclass(frozen=True, slots=True)
class Remaining:
    """How much may be used until a moment, in seconds from now."""

    amount: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """None: not said, or not readable."""

    retry_after_s: float | None = None
    requests: Remaining | None = None
    tokens: Remaining | None = None


def rate_headers(headers: Mapping[str, str], now: datetime) -> RateHeaders:
    """`headers` finds names in any case. `now` is for dates in them."""
    return RateHeaders(
        retry_after_s=_retry_after_s(headers, now),
        requests=_remaining(headers, "requests"),
        tokens=_remaining(headers, "tokens"),
    )


def duration_s(text: str) -> float | None:
    """`1s`, `6m0s`, `20ms`, or a bare number of seconds."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return min(float(text), LONGEST_S)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return min(sum(float(number) * _UNITS_S[unit] for number, unit in parts), LONGEST_S)


def _retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, LONGEST_S)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = duration_s(text)
    if seconds is not None:
        return seconds
    with suppress(ValueError):
        date = parsedate_to_datetime(text)
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        return min(max((date - now).total_seconds(), 0.0), LONGEST_S)
    return None


def _remaining(headers: Mapping[str, str], what: str) -> Remaining | None:
    amount = headers.get(f"x-ratelimit-remaining-{what}", "").strip()
    reset_s = duration_s(headers.get(f"x-ratelimit-reset-{what}", ""))
    if not re.fullmatch(r"\d{1,12}", amount) or reset_s is None:
        return None
    return Remaining(int(amount), reset_s)
