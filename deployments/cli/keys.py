"""`sprat keys …`: API keys, what they and their tenants may do, and their end."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from cluster.store import KeyRecord
from cluster.store.limits import columns_of
from cluster.tenants import Budget, BudgetWindow, KeyLimits
from deployments.cli.limits import changed_limits, limit_options, shown_limits, shown_rate
from deployments.cli.money import budget_fields, shown_usd, window_amount
from deployments.cli.store import opened_store
from deployments.cli.tables import print_table
from deployments.state_folder import StateFolder

LONGEST_OVERLAP_S = 30 * 24 * 3600.0

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group()
def keys() -> None:
    """API keys and tenants, with the cluster up or down. Gateways notice a change within seconds."""


@keys.command()
@click.option("--tenant", required=True, help="Who pays.")
@click.option("--name", required=True, help="What the key is for.")
@limit_options
@click.option(
    "--budget",
    "budgets",
    type=window_amount,
    multiple=True,
    metavar="WINDOW=USD",
    help="day=5.00, month=100 or total=1000; may be repeated.",
)
@click.option("--soft", is_flag=True, help="The budgets let calls through while Redis is away.")
@as_json_option
@click.pass_obj
def create(
    state: StateFolder,
    /,
    *,
    tenant: str,
    name: str,
    budgets: tuple[tuple[BudgetWindow, int], ...],
    soft: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key and print its text, which cannot be shown again."""
    if len({window for window, _ in budgets}) < len(budgets):
        raise click.UsageError("--budget takes each window once.")
    if soft and not budgets:
        raise click.UsageError("--soft is about --budget, and none is given.")
    wanted = [Budget("", window, limit_micro_usd, hard=not soft) for window, limit_micro_usd in budgets]
    chosen = changed_limits(KeyLimits(), **limits)
    with opened_store(state) as store:
        text = store.keys.create(tenant, name, limits=chosen, budgets=wanted)
        record = store.keys.record_of(text)
    if as_json:
        click.echo(json.dumps({"api_key": text, "key": key_fields(record)}))
        return
    click.echo(text)
    click.echo(f"Key {record.key_id} of tenant {tenant}. Keep its text: it cannot be shown again.", err=True)


@keys.command("list")
@as_json_option
@click.pass_obj
def list_(state: StateFolder, *, as_json: bool) -> None:
    """Show all keys, revoked ones too, and the limits of tenants."""
    with opened_store(state) as store:
        records, tenants = store.keys.list_keys(), store.keys.tenant_limits()
    if as_json:
        found = {
            "keys": [key_fields(record) for record in records],
            "tenants": [{"name": name, "limits": columns_of(limits)} for name, limits in tenants.items()],
        }
        click.echo(json.dumps(found))
        return
    print_table(
        ("key", "tenant", "name", "class", "requests", "tokens", "budgets in USD", "made", "state"),
        [
            (
                record.key_id,
                record.tenant,
                record.name,
                record.limits.highest_class,
                shown_rate(record.limits.requests),
                shown_rate(record.limits.tokens),
                ", ".join(f"{each.window} {shown_usd(each.limit_micro_usd)}" for each in record.budgets)
                or "-",
                _moment(record.created_at_ms)[:10],
                _state(record),
            )
            for record in records
        ],
    )
    for name, limits in tenants.items():
        click.echo(f"tenant {name}: {shown_limits(limits)}")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap-s",
    type=click.FloatRange(0, LONGEST_OVERLAP_S),
    default=0.0,
    show_default=True,
    help="How long the text until now goes on working.",
)
@as_json_option
@click.pass_obj
def rotate(state: StateFolder, key_id: str, *, overlap_s: float, as_json: bool) -> None:
    """Give KEY_ID a new text; its limits, budgets and spend stay."""
    with opened_store(state) as store:
        text = store.keys.rotate(key_id, overlap_s)
        record = store.keys.record(key_id)
    if as_json:
        click.echo(json.dumps({"api_key": text, "key": key_fields(record)}))
        return
    click.echo(text)
    until_ms = record.old_text_until_ms
    end = "stops working now" if until_ms is None else f"works until {_moment(until_ms)}"
    click.echo(f"Key {key_id}: the text until now {end}. Keep this one: it cannot be shown again.", err=True)


@keys.command()
@click.argument("key_id")
@as_json_option
@click.pass_obj
def revoke(state: StateFolder, key_id: str, *, as_json: bool) -> None:
    """End KEY_ID for good. What it spent stays in the ledger."""
    with opened_store(state) as store:
        store.keys.revoke(key_id)
        record = store.keys.record(key_id)
    click.echo(json.dumps({"key": key_fields(record)}) if as_json else f"Key {key_id} is revoked.")


@keys.command()
@click.argument("key_id")
@limit_options
@as_json_option
@click.pass_obj
def limits(state: StateFolder, /, key_id: str, *, as_json: bool, **changes: Any) -> None:
    """Change the limits of KEY_ID that are named, then show all of them."""
    with opened_store(state) as store:
        before = store.keys.record(key_id).limits
        after = changed_limits(before, **changes)
        if after != before:
            store.keys.set_limits(key_id, after)
        record = store.keys.record(key_id)
    shown = json.dumps({"key": key_fields(record)}) if as_json else f"key {key_id}: {shown_limits(after)}"
    click.echo(shown)


@keys.command()
@click.argument("name")
@limit_options
@as_json_option
@click.pass_obj
def tenant(state: StateFolder, /, name: str, *, as_json: bool, **changes: Any) -> None:
    """Change the limits that all keys of tenant NAME share, then show them."""
    with opened_store(state) as store:
        before = store.keys.tenant_limits().get(name, KeyLimits())
        after = changed_limits(before, **changes)
        if after != before:
            store.keys.set_tenant_limits(name, after)
    if as_json:
        click.echo(json.dumps({"tenant": {"name": name, "limits": columns_of(after)}}))
        return
    click.echo(f"tenant {name}: {shown_limits(after)}")


def key_fields(record: KeyRecord) -> dict[str, Any]:
    """Times in ISO 8601, UTC. `old_text_until` is set while a text from before a rotation still works."""
    return {
        "key_id": record.key_id,
        "tenant": record.tenant,
        "name": record.name,
        "created_at": _moment(record.created_at_ms),
        "revoked_at": _moment_or_none(record.revoked_at_ms),
        "old_text_until": _moment_or_none(record.old_text_until_ms),
        "limits": columns_of(record.limits),
        "budgets": [budget_fields(budget) for budget in record.budgets],
    }


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _moment_or_none(time_ms: int | None) -> str | None:
    return None if time_ms is None else _moment(time_ms)


def _state(record: KeyRecord) -> str:
    if record.revoked_at_ms is not None:
        return f"revoked {_moment(record.revoked_at_ms)}"
    if record.old_text_until_ms is not None:
        return f"old text until {_moment(record.old_text_until_ms)}"
    return "valid"
