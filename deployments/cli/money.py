"""Amounts and budgets on the command line: exact in, both units out."""

from __future__ import annotations

from typing import Any

import click

from cluster.cost import micro_usd, usd
from cluster.tenants import Budget, BudgetWindow

WINDOWS = tuple(window.value for window in BudgetWindow)


def amount(text: str) -> int:
    """For an option's `type`: an amount in USD → integer micro-USD."""
    try:
        return micro_usd(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def window_amount(text: str) -> tuple[BudgetWindow, int]:
    """For an option's `type`: `day=5.00`."""
    window, equals, usd_text = text.partition("=")
    if window not in WINDOWS or not equals:
        raise click.BadParameter(
            f"{text!r} is no budget; write {', '.join(f'{each}=USD' for each in WINDOWS)}."
        )
    return BudgetWindow(window), amount(usd_text)


def money(name: str, amount_micro_usd: int) -> dict[str, int | float]:
    """`limit` → `limit_micro_usd`, exact, and `limit_usd`, for people."""
    return {f"{name}_micro_usd": amount_micro_usd, f"{name}_usd": usd(amount_micro_usd)}


def budget_fields(budget: Budget) -> dict[str, Any]:
    return {
        "owner": budget.owner,
        "window": budget.window.value,
        **money("limit", budget.limit_micro_usd),
        "hard": budget.hard,
    }


def shown_usd(amount_micro_usd: int) -> str:
    """All six decimals, and exactly: a float has not enough digits for the largest amounts."""
    whole, rest = divmod(amount_micro_usd, 1_000_000)
    return f"{whole}.{rest:06d}"
