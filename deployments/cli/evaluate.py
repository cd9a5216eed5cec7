"""`sprat eval …`: how good routing is; `cluster/router/evaluation` has the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from deployments.cli.eval_agents import agents
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
    from deployments.distil.static_embeddings import static_embedder

    if train:
        learn_from = read_labels(label_files(train), strong=strong, drop=drop)
        asked = read_labels(label_files(labels), strong_in_training=learn_from.strong_model, drop=drop)
    else:
        learn_from = None
        asked = read_labels(label_files(labels), strong=strong, drop=drop)
    report = evaluate(
        Protocol(protocol),
        asked,
        learn_from,
        all_scorers(static_embedder()),
        seed=seed,
        tell=_tell,
    )
    if save:
        from cluster.router.evaluation.plot import plot_router

        _save(report, f"router-{protocol}", plot_router(report))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_router(report)


@evaluation.command()
@click.option("--data", type=FILE, required=True, help="CLINC150's data_full.json, or a file like it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--save", is_flag=True, help="Write cluster/router/results/DATE-scope.json and .svg.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def scope(*, data: Path, seed: int, save: bool, as_json: bool) -> None:
    """How well known topics are told apart, and unknown work from them."""
    from cluster.router.evaluation.scope import evaluate_scope, read_scope_labels
    from deployments.distil.static_embeddings import static_embedder

    report = evaluate_scope(read_scope_labels(data), static_embedder(), seed=seed, tell=_tell)
    if save:
        from cluster.router.evaluation.plot import plot_scope

        _save(report, "scope", plot_scope(report))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_scope(report)


def label_files(paths: tuple[Path, ...]) -> list[Path]:
    """Files as they are, folders as the CSV files in them."""
    return [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]


def _save(report: dict[str, Any], name: str, picture: str) -> None:
    from cluster.router.evaluation.results import save

    for path in save(report, name, picture):
        click.echo(f"written: {path}", err=True)


def _print_router(report: dict[str, Any]) -> None:
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
            f"{each['decide_us_p99']:.0f}",
        ]
        for name, each in report["policies"].items()
    ]
    print_table(("policy", "APGR", "95 %", "CPT(50 %)", "CPT(80 %)", "ECE", "us p50", "us p99"), rows)


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.1%}"


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _print_scope(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['topics']} topics from {report['n_train']} examples, {report['n_in_scope']} utterances in "
        f"scope and {report['n_out_of_scope']} out of it, {report['decide_us_p50']:.0f} us per decision"
    )
    rows = [
        [
            name,
            f"{each['in_scope_accuracy']:.1%}",
            "{:.1%} to {:.1%}".format(*each["in_scope_accuracy_ci"]),
            f"{each['out_of_scope_recall']:.1%}",
            "{:.1%} to {:.1%}".format(*each["out_of_scope_recall_ci"]),
            f"{each['threshold']:.3f}",
        ]
        for name, each in report["systems"].items()
    ]
    print_table(("system", "in-scope accuracy", "95 %", "out-of-scope recall", "95 %", "threshold"), rows)


evaluation.add_command(agents)
