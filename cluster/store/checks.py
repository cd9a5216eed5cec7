"""What may enter the tables. Every refusal is an InvalidRequest that says what to write instead."""

from __future__ import annotations

import re

from cluster.errors import InvalidRequest
from cluster.tenants import MAX_MICRO_USD, Budget, KeyLimits

TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY_ID = re.compile(r"[0-9a-f]{1,32}")
MAX_KEY_NAME = 64

MAX_RATE = 1_000_000_000
"""Requests or tokens per minute: what a 32-bit column holds, rounded down."""


def check_tenant(tenant: str) -> None:
    if not TENANT_NAME.fullmatch(tenant):
        raise InvalidRequest(
            f"{tenant!r} is no name for a tenant. Use 1 to 64 letters, digits, dots, dashes or underscores, "
            "the first a letter or digit."
        )


def check_key_name(name: str) -> None:
    if not (0 < len(name) <= MAX_KEY_NAME and name.isprintable()):
        raise InvalidRequest(
            f"{name!r} is no name for a key. Use 1 to {MAX_KEY_NAME} characters on one line."
        )


def check_limits(limits: KeyLimits) -> None:
    for what, limit in (("requests", limits.requests), ("tokens", limits.tokens)):
        if limit is not None and not (1 <= limit.per_minute <= MAX_RATE and 1 <= limit.burst <= MAX_RATE):
            raise InvalidRequest(f"A limit of {what} is between 1 and {MAX_RATE}, its burst too.")


def check_budget(budget: Budget) -> None:
    kind, _, name = budget.owner.partition(":")
    if kind == "tenant":
        check_tenant(name)
    elif kind != "key" or not KEY_ID.fullmatch(name):
        raise InvalidRequest(f"{budget.owner!r} cannot have a budget. Use tenant:NAME or key:ID.")
    if not 1 <= budget.limit_micro_usd <= MAX_MICRO_USD:
        raise InvalidRequest(f"A budget is between 1 and {MAX_MICRO_USD} micro-USD.")
