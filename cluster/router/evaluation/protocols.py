"""How a policy is judged: what it may learn from, and what it is then asked.

`in`: five folds at random, so the topics of the test are known. `out`: five folds of whole files, so they
are not. `transfer`: learned from other files altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.router.evaluation.curves import apgr_interval, curve, expected_calibration_error
from cluster.router.evaluation.labels import Labels
from cluster.router.evaluation.scorers import Scorer
from cluster.router.evaluation.timing import decision_times
from cluster.router.folds import part_of_rows

FOLDS = 5

Floats = NDArray[np.float64]
Tell = Callable[[str], None]


class Protocol(StrEnum):
    IN = "in"
    OUT = "out"
    TRANSFER = "transfer"


def evaluate(
    protocol: Protocol,
    labels: Labels,
    train: Labels | None,
    scorers: tuple[Scorer, ...],
    *,
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """The report of `sprat eval router --json`. `train` is for `transfer`, and only for it. Raises
    ConfigError."""
    if (train is not None) != (protocol is Protocol.TRANSFER):
        raise ConfigError("--train goes with --protocol transfer, and only with it.")
    if labels.weak_accuracy == labels.strong_accuracy:
        raise ConfigError("Both models are right equally often: there is no gap that a router could recover.")
    weak, strong = np.array(labels.weak), np.array(labels.strong)
    policies = {}
    for scorer in scorers:
        tell(f"{scorer.name}: {protocol}")
        scores, p_weak = _scored(protocol, labels, train, scorer, seed)
        made = curve(scores, weak, strong, seed)
        policies[scorer.name] = {
            "apgr": round(made.apgr, 4),
            "apgr_ci": [round(each, 4) for each in apgr_interval(scores, weak, strong, seed=seed)],
            "cpt50": made.cpt(0.5),
            "cpt80": made.cpt(0.8),
            "ece": None if p_weak is None else round(expected_calibration_error(p_weak, weak), 4),
            **decision_times(partial(_decide, scorer), labels.prompts),
            "pgr": [round(float(each), 4) for each in made.pgr[:: max(1, len(labels) // 200)]],
        }
    return {
        "protocol": protocol.value,
        "n": len(labels),
        "weak_model": labels.weak_model,
        "strong_model": labels.strong_model,
        "weak_accuracy": round(labels.weak_accuracy, 4),
        "strong_accuracy": round(labels.strong_accuracy, 4),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": policies,
    }


def _scored(
    protocol: Protocol, labels: Labels, train: Labels | None, scorer: Scorer, seed: int
) -> tuple[Floats, Floats | None]:
    """Scores, and P(weak is right) where the policy tells it."""
    scores, p_weak = np.empty(len(labels)), np.full(len(labels), np.nan)
    for learn_from, rows in _splits(protocol, labels, train, seed):
        scorer.fit(learn_from, by_group=protocol is not Protocol.IN, seed=seed)
        prompts = tuple(labels.prompts[row] for row in rows)
        scores[rows], probabilities = scorer.score(prompts)
        if probabilities is not None:
            p_weak[rows] = probabilities
    return scores, None if np.isnan(p_weak).any() else p_weak


def _decide(scorer: Scorer, prompt: str) -> object:
    return scorer.score((prompt,))


def _splits(
    protocol: Protocol, labels: Labels, train: Labels | None, seed: int
) -> Iterator[tuple[Labels, list[int]]]:
    """What to learn from, and the rows to be scored then."""
    if train is not None:
        yield train, list(range(len(labels)))
        return
    groups = None if protocol is Protocol.IN else labels.groups
    if groups is not None and len(set(groups)) < FOLDS:
        raise ConfigError(
            "--protocol out leaves out whole files, a fifth of them at a time; "
            f"{len(set(groups))} are too few."
        )
    part_of_row = part_of_rows(len(labels), FOLDS, seed=seed, groups=groups)
    for part in range(FOLDS):
        yield (
            labels.of(np.flatnonzero(part_of_row != part).tolist()),
            np.flatnonzero(part_of_row == part).tolist(),
        )
