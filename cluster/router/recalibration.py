"""P(success), corrected by what came of the calls.

The decision log holds what was estimated when a call was decided, and outcomes say what came of it. Between
the two a line in log-odds is fitted (Platt 1999), held near the identity by a prior, so that a handful of
outcomes changes little. Calls that a policy seldom chose count for the ones it did not choose (inverse
probability).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.decision_log import LoggedDecision
from cluster.errors import ConfigError
from cluster.router.calibration import Calibration
from cluster.router.correctness import CorrectnessModel

Floats = NDArray[np.float64]

FEWEST = 50
PRIOR_OUTCOMES = 20.0
"""The prior is worth so many outcomes."""

LARGEST_WEIGHT = 20.0
"""Of one call: the least exploration that makes sense is 5 %, over all targets."""

LIMIT = 1e-3
STEPS = 50
POINTS_BETWEEN = 16


class Observed(NamedTuple):
    """`predicted` P(success), the `score` (0 to 1) that came of it, and the call's weight."""

    predicted: float
    score: float
    weight: float


@dataclass(frozen=True, slots=True)
class Correction:
    """log-odds of the new P = `offset` + `slope` x log-odds of the old one."""

    offset: float
    slope: float

    def __call__(self, p_success: Floats) -> Floats:
        return _sigmoid(self.offset + self.slope * _log_odds(p_success))


def observed_on(target: str, judged: Iterable[tuple[LoggedDecision, float | None]]) -> list[Observed]:
    """Calls that ran on a target for which a P(success) was estimated. Of a cascade the draft counts, as a
    failure where it was refused."""
    found = []
    for decision, score in judged:
        if decision.target.partition(">")[0] != target:
            continue
        chosen = [each for each in decision.considered if each.target == decision.target]
        predicted = chosen[0].p_success if chosen else None
        refused = bool(decision.steps) and decision.steps[0].verdict == "refused"
        came = 0.0 if refused else score
        if predicted is not None and came is not None:
            found.append(Observed(predicted, came, min(1 / decision.probability, LARGEST_WEIGHT)))
    return found


def fit_correction(observed: Sequence[Observed]) -> Correction:
    """By Newton's method; the weights are scaled to a mean of 1. Raises ConfigError for fewer than FEWEST."""
    if len(observed) < FEWEST:
        raise ConfigError(
            f"{len(observed)} outcomes are too few to learn from; at least {FEWEST} are needed."
        )
    predicted, scores, weights = (np.array(column, dtype=float) for column in zip(*observed, strict=True))
    weights /= weights.mean()
    inputs = np.column_stack((np.ones(len(predicted)), _log_odds(predicted)))
    identity = np.array([0.0, 1.0])
    line = identity.copy()
    for _ in range(STEPS):
        fitted = _sigmoid(inputs @ line)
        slope = inputs.T @ (weights * (fitted - scores)) + PRIOR_OUTCOMES / 4 * (line - identity)
        curvature = (inputs * (weights * fitted * (1 - fitted))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + PRIOR_OUTCOMES / 4 * np.eye(2), slope)
        line = line - step
        if float(np.abs(step).max()) < 1e-9:
            break
    # A falling line would turn the ranking of the model around.
    return Correction(float(line[0]), max(float(line[1]), 0.05))


def corrected(model: CorrectnessModel, corrections: dict[str, Correction]) -> CorrectnessModel:
    """`corrections` by label column; the others stay as they are."""
    calibrations = tuple(
        _corrected(each, corrections[name]) if name in corrections else each
        for name, each in zip(model.models, model.calibrations, strict=True)
    )
    held_out = model.held_out.probabilities.copy()
    for name, correction in corrections.items():
        column = model.models.index(name)
        held_out[:, column] = correction(held_out[:, column])
    return replace(model, calibrations=calibrations, held_out=replace(model.held_out, probabilities=held_out))


def _corrected(calibration: Calibration, correction: Correction) -> Calibration:
    """Between two points of a calibration P is on a straight line, which the correction bends."""
    points = np.arange((len(calibration.scores) - 1) * POINTS_BETWEEN + 1) / POINTS_BETWEEN
    scores = np.interp(points, np.arange(len(calibration.scores)), calibration.scores)
    return Calibration(scores, correction(calibration(scores)))


def _log_odds(p: Floats) -> Floats:
    p = np.clip(p, LIMIT, 1 - LIMIT)
    return np.log(p / (1 - p))


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))
