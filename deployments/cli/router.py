"""`sprat router …`: what learned policies are made of, from labels and examples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cluster.config.policies import LabelledConfig
from deployments.cli.evaluate import FILE, ManyFiles, label_files
from deployments.cli.replay import NEWEST, judged_decisions
from deployments.cli.running_config import running_config
from deployments.cli.store import opened_store
from deployments.state_folder import StateFolder

OUT = click.Path(dir_okay=False, path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group()
def router() -> None:
    """Train what routing policies use."""


@router.command(cls=ManyFiles)
@click.option("--labels", type=FILE, multiple=True, required=True, help="CSV files, or folders of them.")
@click.option("--out", type=OUT, required=True, help="The model, a .npz file.")
@click.option(
    "--new-topics",
    is_flag=True,
    help="The policy will meet topics that no label file has: weigh by leaving out whole files.",
)
@click.option("--seed", default=0, show_default=True)
@AS_JSON
def train(*, labels: tuple[Path, ...], out: Path, new_topics: bool, seed: int, as_json: bool) -> None:
    """Learn which model answers which prompt, for a policy of kind `learned`.

    Label files are CSV with a column `prompt` and one column of true/false or 1/0 per model.
    """
    import numpy as np

    from cluster.router.correctness import CorrectnessModel
    from cluster.router.evaluation.labels import read_model_labels

    learned_from = read_model_labels(label_files(labels))
    _progress(f"learning from {len(learned_from.prompts)} prompts")
    model = CorrectnessModel.fit(
        learned_from.models,
        learned_from.prompts,
        learned_from.right,
        seed=seed,
        groups=learned_from.groups if new_topics else None,
    )
    model.save(out)
    shares = np.mean(learned_from.right, axis=0)
    _tell(
        {
            "out": str(out),
            "prompts": len(learned_from.prompts),
            "models": dict(zip(model.models, (round(float(share), 4) for share in shares), strict=True)),
            "seed": seed,
        },
        as_json=as_json,
    )


@router.command(cls=ManyFiles)
@click.option(
    "--examples", type=FILE, multiple=True, required=True, help='JSON lines: {"text", "topic"}; null = other.'
)
@click.option("--out", type=OUT, required=True, help="The model, a .npz file.")
@click.option("--seed", default=0, show_default=True)
@AS_JSON
def topics(*, examples: tuple[Path, ...], out: Path, seed: int, as_json: bool) -> None:
    """Learn topics from examples, for a policy of kind `embedding`.

    A line whose topic is null is an example of what is none of them.
    """
    from cluster.router.embedding.examples import read_examples
    from cluster.router.embedding.training import learn_topics
    from deployments.distil.static_embeddings import static_embedder

    learned_from = read_examples(examples)
    _progress(f"learning from {len(learned_from.texts)} examples")
    model = learn_topics(static_embedder(), learned_from, seed=seed, tell=_progress)
    model.save(out)
    _tell(
        {
            "out": str(out),
            "examples": len(learned_from.texts),
            "topics": len(model.topics),
            "threshold": round(model.threshold, 4),
            "seed": seed,
        },
        as_json=as_json,
    )


@router.command()
@click.option("--policy", "name", required=True, help="A policy of kind learned or budget, as in the YAML.")
@click.option("--out", type=OUT, required=True, help="The corrected model, a .npz file.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="YAML; default: the running cluster's."
)
@click.option("--newest", type=click.IntRange(1), default=NEWEST, show_default=True, help="Calls at most.")
@AS_JSON
@click.pass_obj
def recalibrate(
    state: StateFolder, *, name: str, out: Path, config_path: Path | None, newest: int, as_json: bool
) -> None:
    """Correct P(success) of a learned model by what came of the calls: feedback, gold labels, verifiers."""
    from cluster.router.correctness import CorrectnessModel
    from cluster.router.recalibration import FEWEST, corrected, fit_correction, observed_on

    policy = running_config(state, config_path).router.policies.get(name)
    if not isinstance(policy, LabelledConfig):
        raise click.UsageError(f"{name!r} is no policy of kind learned or budget in this YAML.")
    with opened_store(state) as store:
        log = list(judged_decisions(store.decisions, 0, newest))
    corrections, report = {}, {}
    for column, target in policy.targets.items():
        observed = observed_on(target, log)
        _progress(f"{target}: {len(observed)} calls with an estimate and an outcome")
        if len(observed) < FEWEST:
            report[column] = {"outcomes": len(observed), "corrected": False}
            continue
        corrections[column] = fit_correction(observed)
        report[column] = {"outcomes": len(observed), "corrected": True, **asdict(corrections[column])}
    if not corrections:
        raise click.UsageError(f"No target has {FEWEST} calls with an estimate and an outcome yet.")
    corrected(CorrectnessModel.load(Path(policy.model)), corrections).save(out)
    _tell({"out": str(out), "models": report}, as_json=as_json)


@router.command()
@AS_JSON
def embed(*, as_json: bool) -> None:
    """Make the static embeddings, which other commands otherwise make when they need them."""
    from deployments.distil.static_embeddings import static_embedder, static_embeddings_path

    embedder = static_embedder()
    tokens, dims = embedder.matrix.shape
    _tell({"path": str(static_embeddings_path()), "tokens": tokens, "dims": dims}, as_json=as_json)


def _tell(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report))
    else:
        for name, value in report.items():
            click.echo(f"{name}: {value}")


def _progress(line: str) -> None:
    click.echo(line, err=True)
