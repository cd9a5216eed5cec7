"""The options by which keys and tenants are limited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cluster.tenants import KeyLimits, RateLimit
from cluster.types import PriorityClass

Command = TypeVar("Command", bound=Callable[..., Any])

BURST = "How many at once [default: those of a minute]."
LIMIT_OPTIONS = (
    click.option(
        "--class",
        "highest_class",
        type=click.Choice([each.value for each in PriorityClass]),
        help="The most urgent class that a call may ask for.",
    ),
    click.option("--rpm", type=click.IntRange(min=0), help="Requests per minute; 0: no limit."),
    click.option("--rpm-burst", type=click.IntRange(min=1), help=BURST),
    click.option("--tpm", type=click.IntRange(min=0), help="Prompt + output tokens per minute; 0: no limit."),
    click.option("--tpm-burst", type=click.IntRange(min=1), help=BURST),
)


def limit_options(command: Command) -> Command:
    for option in reversed(LIMIT_OPTIONS):
        command = option(command)
    return command


def changed_limits(
    limits: KeyLimits,
    *,
    highest_class: str | None,
    rpm: int | None,
    rpm_burst: int | None,
    tpm: int | None,
    tpm_burst: int | None,
) -> KeyLimits:
    """What an option does not name stays."""
    return KeyLimits(
        requests=_changed(limits.requests, rpm, rpm_burst, "--rpm"),
        tokens=_changed(limits.tokens, tpm, tpm_burst, "--tpm"),
        highest_class=PriorityClass(highest_class) if highest_class is not None else limits.highest_class,
    )


def _changed(
    before: RateLimit | None, per_minute: int | None, burst: int | None, option: str
) -> RateLimit | None:
    if per_minute is None and burst is None:
        return before
    if per_minute is None and before is not None:
        per_minute = before.per_minute
    if not per_minute:
        if burst is not None:
            raise click.UsageError(f"{option}-burst needs a limit: give {option} too, above 0.")
        return None
    return RateLimit(per_minute, burst if burst is not None else per_minute)


def shown_rate(limit: RateLimit | None) -> str:
    if limit is None:
        return "-"
    return f"{limit.per_minute}/min" + (f", {limit.burst} at once" if limit.burst != limit.per_minute else "")


def shown_limits(limits: KeyLimits) -> str:
    return (
        f"requests {shown_rate(limits.requests)}, tokens {shown_rate(limits.tokens)}, "
        f"classes up to {limits.highest_class}"
    )
