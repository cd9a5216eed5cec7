"""`sprat eval …`: how good routing is; `cluster/router/evaluation` has the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deployments.cli.tables import print_table

FILE = click.Path(exists=True, path_type=Path)


class ManyFiles(click.Command):
    """`--labels A B C` is `--labels A --labels B --labels C`: what a shell makes of a pattern."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeated = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        expanded: list[str] = []
        current: str | None = None
        wants_value = False
        for argument in args:
            if argument.startswith("-"):
                current = argument if argument in repeated else None
                wants_value = True
                expanded.append(argument)
            else:
                if current is not None and not wants_value:
                    expanded.append(current)
                wants_value = False
                expanded.append(argument)
        return super().parse_args(ctx, expanded)


@click.group("eval")
def evaluation() -> None:
    """How good routing is, on labelled data."""


@evaluation.command(cls=ManyFiles)
@click.option("--labels", type=FILE, multiple=True, required=True, help="CSV files, or folders of them.")
@click.option("--train", type=FILE, multiple=True, help="For --protocol transfer: what to learn from.")
@click.option(
    "--protocol",
    type=click.Choice(["in", "out", "transfer"]),
    required=True,
    help="in: 5 folds at random; out: 5 folds of whole files; transfer: learned from --train.",
)
@click.option(
    "--drop", type=FILE, multiple=True, help="JSON lines with prompts to leave out (contamination)."
)
@click.option("--strong", help="Which model is the strong one; else the one with the higher mean.")
@click.option("--seed", default=0, show_default=True)
@click.option("--save", is_flag=True, help="Write cluster/router/results/DATE-router-PROTOCOL.json and .svg.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def router(
    *,
    labels: tuple[Path, ...],
    train: tuple[Path, ...],
    protocol: str,
    drop: tuple[Path, ...],
    strong: str | None,
    seed: int,
    save: bool,
    as_json: bool,
) -> None:
    """Cost and quality of routing policies between two models, from RouteLLM's label files."""
    from cluster.router.evaluation.labels import read_labels
    from cluster.router.evaluation.protocols import Protocol, evaluate
    from cluster.router.evaluation.scorers import all_scorers

    if train:
        learn_from = read_labels(_files(train), strong=strong, drop=drop)
        asked = read_labels(_files(labels), strong_in_training=learn_from.strong_model, drop=drop)
    else:
        learn_from = None
        asked = read_labels(_files(labels), strong=strong, drop=drop)
    report = evaluate(
        Protocol(protocol),
        asked,
        learn_from,
        all_scorers(),
        seed=seed,
        tell=lambda line: click.echo(line, err=True),
    )
    if save:
        from cluster.router.evaluation.results import save as save_report

        for path in save_report(report):
            click.echo(f"written: {path}", err=True)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def _files(paths: tuple[Path, ...]) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['n']} prompts, protocol {report['protocol']}: {report['weak_model']} is right on "
        f"{report['weak_accuracy']:.1%}, {report['strong_model']} on {report['strong_accuracy']:.1%}"
    )
    rows = [
        [
            name,
            f"{each['apgr']:.3f}",
            f"{each['apgr_ci'][0]:.3f} to {each['apgr_ci'][1]:.3f}",
            _share(each["cpt50"]),
            _share(each["cpt80"]),
            "" if each["ece"] is None else f"{each['ece']:.3f}",
            f"{each['decide_us_p50']:.0f}",
        ]
        for name, each in report["policies"].items()
    ]
    print_table(("policy", "APGR", "95 %", "CPT(50 %)", "CPT(80 %)", "ECE", "us per decision"), rows)


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.1%}"
