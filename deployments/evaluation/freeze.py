"""Chooses the cases: `python -m deployments.evaluation.freeze --data FOLDER --seed N` writes
`frozen_cases.json`. Done once, before any model answered one; running it again makes other evaluations
incomparable with the earlier ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import click

from deployments.evaluation.cases import FROZEN, Case, Suite, all_cases

COUNTS = {Suite.SIMPLE: 60, Suite.MULTIPLE: 60, Suite.INTENT: 120}


def choose(cases: list[Case], counts: dict[Suite, int], seed: int) -> list[Case]:
    """So many of each suite, at random."""
    generator = random.Random(seed)  # noqa: S311 (a sample, no secret)
    return [
        case
        for suite, count in counts.items()
        for case in generator.sample([case for case in cases if case.suite is suite], count)
    ]


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--seed", type=int, required=True)
def freeze(*, data: Path, seed: int) -> None:
    """Choose the cases and write their names and digests."""
    chosen = choose(list(all_cases(data)), COUNTS, seed)
    frozen = {"seed": seed, "sha256": {case.id: case.text_sha256 for case in chosen}}
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    freeze()
