"""Does a router know what it does not know? Topics of known work, and unknown work told from it: `sprat eval
scope`, on data in CLINC150's format (Larson 2019).

Everything is chosen on the training and validation parts; the test part is looked at once per run. Accuracy
in scope counts a known utterance that is taken for unknown as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.router.embedding.static import StaticEmbedder
from cluster.router.embedding.topics import TopicModel
from cluster.router.embedding.training import Examples, learn_topics, rejection_threshold
from cluster.router.evaluation.timing import decision_times

Z_95 = 1.96
CURVE_POINTS = 100

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScopeLabels:
    train: Examples
    validation: Examples
    test: Examples


class Told(NamedTuple):
    """Of some texts: the topic each is most likely on, and how sure that is; lower where unknown."""

    topics: Sequence[str]
    scores: Floats


System = Callable[[Sequence[str]], Told]


def evaluate_scope(
    labels: ScopeLabels, embedder: StaticEmbedder, *, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The report of `sprat eval scope --json`. Raises ConfigError."""
    tell(f"learning {len(set(labels.train.topics) - {None})} topics from {len(labels.train.texts)} examples")
    model = learn_topics(embedder, labels.train, validation=labels.validation, seed=seed, tell=tell)
    tell("the same without pre-trained vectors")
    words = learn_topics(
        _without_meaning(embedder, seed), labels.train, validation=labels.validation, seed=seed, tell=tell
    )
    systems = {"topics": _told_by(model), "words_only": _told_by(words), **_baselines(model, seed)}
    reports = {}
    for name, system in systems.items():
        tell(f"{name}: {len(labels.test.texts)} test utterances")
        reports[name] = _judged(system, labels)
    unknown = sum(topic is None for topic in labels.test.topics)
    return {
        **{key: reports["topics"][key] for key in ("in_scope_accuracy", "out_of_scope_recall", "threshold")},
        **decision_times(model.nearest, labels.test.texts),
        "topics": len(model.topics),
        "n_train": len(labels.train.texts),
        "n_in_scope": len(labels.test.texts) - unknown,
        "n_out_of_scope": unknown,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "systems": reports,
    }


def _told_by(model: TopicModel) -> System:
    def tell(texts: Sequence[str]) -> Told:
        scores = model.scores(texts)
        return Told([model.topics[at] for at in scores.argmax(axis=1)], scores.max(axis=1))

    return tell


def _without_meaning(embedder: StaticEmbedder, seed: int) -> StaticEmbedder:
    """The same words, with vectors that say nothing of them."""
    matrix = np.random.default_rng(seed).standard_normal(embedder.matrix.shape, dtype=np.float32)
    return StaticEmbedder(embedder.tokenizer, matrix)


def _baselines(model: TopicModel, seed: int) -> dict[str, System]:
    """The topics of `model`, with scores that know nothing of them."""
    generator = np.random.default_rng(seed)
    scores: dict[str, Callable[[Sequence[str]], Floats]] = {
        "prompt_length": lambda texts: np.array([-len(text) for text in texts], dtype=np.float32),
        "random": lambda texts: generator.random(len(texts), dtype=np.float32),
        "always_in_scope": lambda texts: np.zeros(len(texts), dtype=np.float32),
    }
    return {name: partial(_with_scores, _told_by(model), score) for name, score in scores.items()}


def _with_scores(system: System, score: Callable[[Sequence[str]], Floats], texts: Sequence[str]) -> Told:
    return Told(system(texts).topics, score(texts))


def _judged(system: System, labels: ScopeLabels) -> dict[str, Any]:
    """Figures of the test part, at the threshold that the validation part chose."""
    told, right, known = _told(system, labels.validation)
    threshold = rejection_threshold(told.scores, right, int(known.sum()))
    told, right, known = _told(system, labels.test)
    taken = told.scores >= threshold
    hits, refused = int((right & taken).sum()), int((~known & ~taken).sum())
    n_known, n_unknown = int(known.sum()), int((~known).sum())
    return {
        "in_scope_accuracy": round(hits / n_known, 4),
        "in_scope_accuracy_ci": wilson(hits, n_known),
        "out_of_scope_recall": round(refused / n_unknown, 4),
        "out_of_scope_recall_ci": wilson(refused, n_unknown),
        "accuracy_without_rejection": round(float(right.sum()) / n_known, 4),
        "threshold": round(threshold, 4),
        "curve": [
            [
                round(float((told.scores[~known] < cut).mean()), 4),
                round(float((right & (told.scores >= cut)).sum()) / n_known, 4),
            ]
            for cut in np.quantile(told.scores, np.linspace(0, 1, CURVE_POINTS))
        ],
    }


def _told(system: System, examples: Examples) -> tuple[Told, NDArray[np.bool_], NDArray[np.bool_]]:
    """What the system says, where that is right, and which examples are in scope."""
    told = system(examples.texts)
    right = np.array([topic == truth for topic, truth in zip(told.topics, examples.topics, strict=True)])
    return told, right, np.array([truth is not None for truth in examples.topics])


def wilson(hits: int, count: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    share, z2 = hits / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return [round(middle - half, 4), round(middle + half, 4)]


def read_scope_labels(file: Path) -> ScopeLabels:
    """JSON with lists of [text, topic] under train, val and test, and under oos_train, oos_val and oos_test,
    whose topic is out of scope whatever it is called. Raises ConfigError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: is no object with lists under train, val, test and oos_…")
    train, validation, test = (
        _part(file, content, name, optional_unknown=name == "train") for name in ("train", "val", "test")
    )
    known = set(train.topics)
    strange = {topic for part in (validation, test) for topic in part.topics} - known - {None}
    if strange:
        raise ConfigError(f"{file}: no training example has the topic {min(map(str, strange))!r}.")
    return ScopeLabels(train, validation, test)


def _part(file: Path, content: dict[str, Any], name: str, *, optional_unknown: bool) -> Examples:
    known = _pairs(file, content, name)
    unknown = (
        [] if optional_unknown and f"oos_{name}" not in content else _pairs(file, content, f"oos_{name}")
    )
    return Examples(
        tuple(text for text, _ in (*known, *unknown)),
        (*(topic for _, topic in known), *(None for _ in unknown)),
    )


def _pairs(file: Path, content: dict[str, Any], name: str) -> list[tuple[str, str]]:
    rows = content.get(name)
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{file}: there is no list {name!r}, or it is empty.")
    for number, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)):
            raise ConfigError(f"{file}: entry {number} of {name!r} is not [text, topic].")
    return [(text, topic) for text, topic in rows]
