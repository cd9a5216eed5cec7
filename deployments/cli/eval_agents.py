"""`sprat eval agents`: what routing is worth on frozen calls of agents, answered by real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deployments.cli.tables import print_table
from deployments.cli.up import EXAMPLE
from deployments.state_folder import StateFolder

COUNTS = ("n", "small_right", "large_right", "both_right", "neither_right")


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Folder with `bfcl` and `clinc150`.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=EXAMPLE,
    help="Cluster YAML with two tiers.  [default: laptop.yaml]",
)
@click.option(
    "--answers", type=click.Path(path_type=Path), help="Folder of the answers.  [default: in --state]"
)
@click.option("--gateway", help="URL of a running gateway, up to /v1; else a cluster is started and stopped.")
@click.option("--key", envvar="SPRAT_KEY", help="API key for --gateway.")
@click.option("--kept-only", is_flag=True, help="Score the answers that are there, ask for no more.")
@click.option("--live", default=0, show_default=True, help="So many cases again, with `model: auto`.")
@click.option("--policy", help="Router policy of the cluster that is started for --live.")
@click.option("--seed", default=0, show_default=True)
@click.option("--save", is_flag=True, help="Write cluster/router/results/DATE-agents.json and .svg.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def agents(
    state: StateFolder,
    *,
    data: Path,
    file: Path,
    answers: Path | None,
    gateway: str | None,
    key: str | None,
    kept_only: bool,
    live: int,
    policy: str | None,
    seed: int,
    save: bool,
    as_json: bool,
) -> None:
    """Quality, cost and latency of routing policies on calls of agents, by real models.

    Both models answer 240 frozen cases once, which takes an hour on two cores; the answers are kept, and a
    command that was interrupted goes on where it stopped. Policies are scored on the kept answers.
    """
    if gateway is not None and not key:
        raise click.UsageError("--gateway needs --key (or SPRAT_KEY).")
    if gateway is not None and policy is not None:
        raise click.UsageError("--policy is for a cluster that is started here; a --gateway has its own.")
    from deployments.evaluation.collect import Endpoint
    from deployments.evaluation.run import Evaluation

    report = Evaluation(
        data=data,
        file=file,
        answers=(answers or state.path / "agents").absolute(),
        endpoint=Endpoint(gateway, key) if gateway is not None and key else None,
        kept_only=kept_only,
        policy=policy,
        live=live,
        seed=seed,
    ).run(lambda line: click.echo(line, err=True))
    if save:
        _save(report)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _save(report: dict[str, Any]) -> None:
    from cluster.router.evaluation.results import save
    from deployments.evaluation.plot import plot_agents

    for path in save(report, "agents", plot_agents(report)):
        click.echo(f"written: {path}", err=True)


def _print(report: dict[str, Any]) -> None:
    models = report["models"]
    small, large = models["small"]["model"], models["large"]["model"]
    click.echo(f"{report['n']} of {report['cases_frozen']} cases answered by {small} and {large}")
    print_table(
        ("suite", "cases", "small right", "large right", "both", "neither"),
        [[name, *(str(each[key]) for key in COUNTS)] for name, each in report["suites"].items()],
    )
    print_table(
        (
            *("policy", "right", "USD per 1,000 calls", "latency p50, p95", "on large"),
            *("right, against always large", "cost, against always large"),
        ),
        [
            [
                name,
                f"{each['quality']:.1%}",
                f"{each['per_1000_usd']:.3f}",
                f"{each['latency_ms']['p50'] / 1000:.1f}, {each['latency_ms']['p95'] / 1000:.1f} s",
                f"{each['share_on_large']:.0%}",
                _difference(each["against_always_large"]["quality"]),
                _difference(each["against_always_large"]["cost"]),
            ]
            for name, each in report["policies"].items()
        ],
    )
    click.echo(f"Prices are {report['prices']}. Latencies are {report['latencies']}.")
    if "live" in report:
        live = report["live"]
        click.echo(
            f"Live, policy {live['policy']}: {live['n']} cases, {live['quality']:.1%} right, "
            f"{live['per_1000_usd']:.3f} USD per 1,000 calls, {live['share_on_large']:.0%} on large"
        )


def _difference(of: dict[str, Any]) -> str:
    low, high = of["ci"]
    return f"{of['difference']:+.1%} ({low:+.1%} to {high:+.1%})"
