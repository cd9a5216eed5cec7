"""`sprat explain REQUEST_ID`: why a call ran where it did, what it cost, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from cluster.decision_log import LoggedDecision, Outcome, Step, Weighed
from cluster.errors import InvalidRequest
from cluster.ledger import LedgerEntry
from cluster.store.decisions import RETENTION_DAYS
from deployments.cli.money import money, shown_usd
from deployments.cli.store import opened_store
from deployments.cli.tables import print_table
from deployments.state_folder import StateFolder


@click.command()
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def explain(state: StateFolder, request_id: str, *, as_json: bool) -> None:
    """Show the decision for REQUEST_ID (the header x-sprat-request-id of the answer)."""
    with opened_store(state) as store:
        decision = store.decisions.find(request_id)
        if decision is None:
            raise InvalidRequest(
                f"No decision is kept for {request_id!r}: there was no such call, or it ended in the last "
                f"seconds, or more than {RETENTION_DAYS} days ago."
            )
        outcomes = store.decisions.outcomes_of(request_id)
        charged = store.ledger.find([request_id]).get(request_id)
    found = explanation(decision, outcomes.values(), charged)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)


def explanation(
    decision: LoggedDecision, outcomes: Iterable[Outcome], charged: LedgerEntry | None
) -> dict[str, Any]:
    """`cost` is what was charged, else what the steps cost; `large` is what the same tokens cost on the
    largest tier. Unknown amounts are null."""
    cost_micro_usd = decision.cost_micro_usd if charged is None else charged.cost_micro_usd
    large = decision.large_micro_usd
    return {
        "request_id": decision.request_id,
        "tenant": decision.tenant,
        "key_id": decision.key_id,
        "at": _moment(decision.at_ms),
        "policy": decision.policy,
        "reason": decision.reason,
        "target": decision.target,
        "probability": decision.probability,
        "features": decision.features,
        "considered": [_considered(each) for each in decision.considered],
        "steps": [_step(each) for each in decision.steps],
        **money("cost", cost_micro_usd),
        **_money_or_null("large", large),
        **_money_or_null("saved", None if large is None else large - cost_micro_usd),
        "prompt_tokens": None if charged is None else charged.prompt_tokens,
        "output_tokens": None if charged is None else charged.output_tokens,
        "outcomes": [
            {"source": each.source.value, "score": each.score, "label": each.label, "at": _moment(each.at_ms)}
            for each in outcomes
        ],
    }


def _considered(each: Weighed) -> dict[str, Any]:
    return {
        "target": each.target,
        "probability": each.probability,
        "p_success": each.p_success,
        **_money_or_null("cost", each.cost_micro_usd),
        **_money_or_null("expected", each.expected_micro_usd),
    }


def _step(each: Step) -> dict[str, Any]:
    fields = each.model_dump(exclude={"cost_micro_usd"})
    return fields | money("cost", each.cost_micro_usd)


def _money_or_null(name: str, amount_micro_usd: int | None) -> dict[str, int | float | None]:
    if amount_micro_usd is None:
        return {f"{name}_micro_usd": None, f"{name}_usd": None}
    return {**money(name, amount_micro_usd)}


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _print(found: dict[str, Any]) -> None:
    click.echo(f"{found['request_id']}, {found['at']}, tenant {found['tenant']}, key {found['key_id']}")
    click.echo(
        f"{found['target']}, because {found['reason']} (policy {found['policy']}, "
        f"chosen with probability {found['probability']:.3g})"
    )
    if found["considered"]:
        print_table(
            ("considered", "probability", "P(success)", "USD at most", "USD per success"),
            [
                (
                    each["target"],
                    f"{each['probability']:.3g}",
                    "-" if each["p_success"] is None else f"{each['p_success']:.3f}",
                    _usd(each["cost_micro_usd"]),
                    _usd(each["expected_micro_usd"]),
                )
                for each in found["considered"]
            ],
        )
    if found["steps"]:
        print_table(
            ("step", "tier", "model", "replica", "verdict", "why", "USD"),
            [
                (
                    *(str(number), each["tier"], each["model"], each["replica"]),
                    *(each["verdict"] or "-", each["why"] or "-", _usd(each["cost_micro_usd"])),
                )
                for number, each in enumerate(found["steps"], start=1)
            ],
        )
    large = _usd(found["large_micro_usd"])
    click.echo(f"cost {_usd(found['cost_micro_usd'])} USD; always on the largest tier: {large} USD")
    for each in found["outcomes"]:
        label = f" ({each['label']})" if each["label"] else ""
        click.echo(f"outcome by {each['source']}: {each['score']:g}{label}")


def _usd(amount_micro_usd: int | None) -> str:
    return "-" if amount_micro_usd is None else shown_usd(amount_micro_usd)
