"""`sprat budget …`: what tenants and keys may spend, and what they spent."""

from __future__ import annotations

import asyncio
import json

import click

from cluster.clock import SystemClock
from cluster.tenants import Budget, BudgetWindow, window_name
from cluster.types import BudgetState
from deployments.cli.money import WINDOWS, amount, budget_fields, money, shown_usd
from deployments.cli.store import opened_store
from deployments.cli.tables import print_table
from deployments.cluster_status import live_budgets
from deployments.state_folder import StateFolder

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group()
def budget() -> None:
    """Budgets of OWNER: tenant:NAME or key:ID. Days and months are UTC; a call belongs to the window it was
    admitted in. Gateways notice a change within seconds."""


@budget.command("set")
@click.argument("owner")
@click.argument("window", type=click.Choice(WINDOWS))
@click.argument("usd", type=amount)
@click.option(
    "--soft", is_flag=True, help="While Redis is away, let calls through within scheduler.soft_allowance_usd."
)
@as_json_option
@click.pass_obj
def set_(state: StateFolder, owner: str, window: str, usd: int, *, soft: bool, as_json: bool) -> None:
    """OWNER may spend USD per WINDOW. Replaces the budget that it has there."""
    wanted = Budget(owner, BudgetWindow(window), usd, hard=not soft)
    with opened_store(state) as store:
        store.budgets.set(wanted)
    if as_json:
        click.echo(json.dumps({"budget": budget_fields(wanted)}))
        return
    click.echo(f"{owner} may spend {shown_usd(usd)} USD ({window}, {_kind(wanted)}).")


@budget.command("list")
@as_json_option
@click.pass_obj
def list_(state: StateFolder, *, as_json: bool) -> None:
    """Show all budgets in the window of now: limit, spent, held by running calls, left. Where the cluster
    runs, its scheduler is asked too: it knows of a call some milliseconds before the ledger does."""
    now_ms = SystemClock().now_ms()
    with opened_store(state) as store:
        found = [(each, window_name(each.window, now_ms)) for each in store.budgets.list_budgets()]
        names = [(each.owner, name) for each, name in found]
        sums = store.ledger.spent(names)
    live = asyncio.run(live_budgets(state, names)) or (BudgetState(),) * len(names)
    rows = [
        (each, name, max(sums[each.owner, name], seen.spent_micro_usd), seen.held_micro_usd)
        for (each, name), seen in zip(found, live, strict=True)
    ]
    if as_json:
        budgets = [
            {
                **budget_fields(each),
                "window_name": name,
                **money("spent", spent),
                **money("held", held),
                **money("left", max(0, each.limit_micro_usd - spent - held)),
            }
            for each, name, spent, held in rows
        ]
        click.echo(json.dumps({"budgets": budgets}))
        return
    print_table(
        ("owner", "window", "limit USD", "spent USD", "held USD", "left USD", "kind"),
        [
            (
                each.owner,
                name,
                shown_usd(each.limit_micro_usd),
                shown_usd(spent),
                shown_usd(held),
                shown_usd(max(0, each.limit_micro_usd - spent - held)),
                _kind(each),
            )
            for each, name, spent, held in rows
        ],
    )


@budget.command()
@click.argument("owner")
@click.argument("window", type=click.Choice(WINDOWS))
@as_json_option
@click.pass_obj
def remove(state: StateFolder, owner: str, window: str, *, as_json: bool) -> None:
    """OWNER has no budget for WINDOW any more. What was spent stays in the ledger."""
    with opened_store(state) as store:
        store.budgets.remove(owner, BudgetWindow(window))
    removed = {"removed": {"owner": owner, "window": window}}
    click.echo(json.dumps(removed) if as_json else f"{owner} has no {window} budget any more.")


def _kind(budget: Budget) -> str:
    return "hard" if budget.hard else "soft"
