"""`sprat replay --policy NAME`: what another policy would have been worth, from the decision log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cluster.clock import DAY_MS, SystemClock
from cluster.config import ClusterConfig
from cluster.config.policies import BUILT_IN
from cluster.decision_log import LoggedDecision, best_outcome
from cluster.router.view import FleetView
from cluster.store.decisions import RETENTION_DAYS, DecisionLog
from deployments.cli.running_config import running_config
from deployments.cli.store import opened_store
from deployments.cli.tables import print_table
from deployments.state_folder import StateFolder

NEWEST = 100_000
"""Calls that are read by default."""


@click.command()
@click.option("--policy", "name", required=True, help="As in the YAML; always_small, random, …; or a target.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="YAML; default: the running cluster's."
)
@click.option(
    "--since",
    "since_days",
    type=click.FloatRange(0, min_open=True),
    default=RETENTION_DAYS,
    show_default=True,
    help="Calls of so many days.",
)
@click.option("--newest", type=click.IntRange(1), default=NEWEST, show_default=True, help="So many at most.")
@click.option("--seed", default=0, show_default=True, help="Of the intervals.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def replay(
    state: StateFolder,
    *,
    name: str,
    config_path: Path | None,
    since_days: float,
    newest: int,
    seed: int,
    as_json: bool,
) -> None:
    """Estimate how good another policy would have been, and what it would have cost."""
    from cluster.router.evaluation.logged_policy import LoggedPolicy
    from cluster.router.evaluation.off_policy import replay as replay_log

    config = running_config(state, config_path)
    view = FleetView.of(config)
    _check_known(name, config, view)
    policy = LoggedPolicy(name, config.router, view)
    since_ms = SystemClock().now_ms() - round(since_days * DAY_MS)
    with opened_store(state) as store:
        report = replay_log(judged_decisions(store.decisions, since_ms, newest), policy, seed=seed)
    report |= {"since_days": since_days, "seed": seed}
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _check_known(name: str, config: ClusterConfig, view: FleetView) -> None:
    policies = (*BUILT_IN, *config.router.policies)
    targets = (*view.tiers, *view.adapters(), *view.base_models())
    if name not in policies and name not in targets:
        raise click.UsageError(
            f"There is no policy {name!r}. This cluster has {', '.join(policies)}, "
            f"and the targets {', '.join(targets)}."
        )


def judged_decisions(
    log: DecisionLog, since_ms: int, newest: int
) -> Iterator[tuple[LoggedDecision, float | None]]:
    for decision, outcomes in log.newest(since_ms, newest):
        best = best_outcome(outcomes)
        yield decision, None if best is None else best.score


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"policy {report['policy']}: {report['n']} calls with an outcome, {report['without_outcome']} without"
    )
    click.echo(
        f"{report['matched']} on which both agree, {report['asked_for']} left out that asked for a model, "
        f"effective sample size {report['effective_sample_size']:.0f}"
    )
    logged = report["logged"]
    rows = [
        ("what ran", "mean", logged, logged["cost_micro_usd"]),
        (report["policy"], "doubly robust", report["dr"], report["cost_micro_usd"]),
        ("", "self-normalised IPS", report["snips"], None),
        ("", "IPS", report["ips"], None),
    ]
    print_table(
        ("policy", "estimator", "score", "95 %", "USD per call", "95 %"),
        [(name, how, *_shown(score, 1), *_shown(cost, 1e6)) for name, how, score, cost in rows],
    )
    if report["value"] is None and report["bounds"] is not None:
        low, high = report["bounds"]
        click.echo(f"the score is between {low:.3f} and {high:.3f}")
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def _shown(estimate: dict[str, Any] | None, unit: float) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    if estimate["value"] is None:
        return "not identified", ""
    decimals = 3 if unit == 1 else 7
    low, high = (f"{bound / unit:.{decimals}f}" for bound in estimate["interval"])
    return f"{estimate['value'] / unit:.{decimals}f}", f"{low} to {high}"
