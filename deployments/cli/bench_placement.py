"""`sprat bench placement`: adapters on replicas, our placement beside others', simulated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from cluster.placement.evaluation.scenario import Scenario
from deployments.cli.tables import print_table

Command = TypeVar("Command", bound=Callable[..., Any])

_TYPES = {"int": int, "float": float}


def _scenario_options(command: Command) -> Command:
    """One option per field of the scenario."""
    for each in reversed(fields(Scenario)):
        name = "--" + each.name.replace("_", "-")
        command = click.option(name, type=_TYPES[str(each.type)], default=each.default, show_default=True)(
            command
        )
    return command


@click.command()
@_scenario_options
@click.option("--seed", default=1, show_default=True, help="Of the calls; the rows are of this one.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds for the intervals."
)
@click.option("--policies", default="", help="Some of them, by comma; all by default.")
@click.option(
    "--save", is_flag=True, help="Write cluster/placement/results/DATE-placement-SHAPE.json and .svg."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def placement(
    *, seed: int, repeats: int, policies: str, save: bool, as_json: bool, **scenario_fields: float
) -> None:
    """Adapters on replicas under changing demand: loads, cold TTFT and starvation, by policy. Simulated.

    What the fields of the scenario mean, and what each policy does: cluster/placement/README.md.
    """
    from cluster.placement.evaluation.comparison import POLICIES, compare
    from cluster.placement.evaluation.results import save as save_files

    chosen = [name for name in policies.split(",") if name] or list(POLICIES)
    unknown = sorted(set(chosen) - set(POLICIES))
    if unknown:
        raise click.UsageError(f"unknown policy {', '.join(unknown)}; choose of {', '.join(POLICIES)}")
    try:
        scenario = Scenario(**scenario_fields)  # type: ignore[arg-type]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds")} | compare(
        scenario, seed, repeats, chosen, say=lambda line: click.echo(line, err=True)
    )
    if save:
        table, plot = save_files(report)
        click.echo(f"wrote {table} and {plot}", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    _print(report)


def _print(report: dict[str, Any]) -> None:
    columns = {
        "policy": "{}",
        "loads_per_1000": "{:.1f}",
        "cold_ttft_p99_ms": "{:,.0f}",
        "starved": "{}",
        "cold_share": "{:.1%}",
        "ttft_p50_ms": "{:,.0f}",
        "ttft_p99_ms": "{:,.0f}",
        "slot_imbalance": "{:.2f}",
        "copies": "{:.2f}",
    }
    click.echo(f"Simulated, seed {report['seed']}")
    print_table(
        tuple(name.replace("_", " ") for name in columns),
        [[shape.format(row[name]) for name, shape in columns.items()] for row in report["rows"]],
    )
