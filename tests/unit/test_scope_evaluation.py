"""`sprat eval scope`, on made-up topics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from cluster.errors import ConfigError
from cluster.router.evaluation.plot import plot_scope
from cluster.router.evaluation.scope import evaluate_scope, read_scope_labels, wilson
from deployments.cli.evaluate import evaluation
from tests.tiny_embedder import FOOD, OTHER, TRAVEL, sentences, tiny_embedder


def content() -> dict[str, list[list[str]]]:
    made = {}
    for seed, (name, count) in enumerate((("train", 40), ("val", 100), ("test", 30))):
        known = [[text, "food"] for text in sentences(FOOD, count, seed)]
        known += [[text, "travel"] for text in sentences(TRAVEL, count, seed + 10)]
        made[name] = known
        made[f"oos_{name}"] = [[text, "oos"] for text in sentences(OTHER, 30, seed + 20)]
    return made


def written(folder: Path, made: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(made))
    return path


def test_known_work_is_told_apart_and_unknown_work_refused(tmp_path: Path) -> None:
    labels = read_scope_labels(written(tmp_path, content()))
    report = evaluate_scope(labels, tiny_embedder(), seed=0, tell=lambda _: None)
    assert report["in_scope_accuracy"] > 0.9
    assert report["out_of_scope_recall"] > 0.9
    assert (report["topics"], report["n_in_scope"], report["n_out_of_scope"]) == (2, 60, 30)
    systems = report["systems"]
    assert systems["words_only"]["accuracy_without_rejection"] > 0.8, "every word is in the examples"
    assert systems["always_in_scope"]["out_of_scope_recall"] == 0
    assert systems["always_in_scope"]["in_scope_accuracy"] >= report["in_scope_accuracy"]
    assert systems["random"]["out_of_scope_recall"] < 0.2
    low, high = systems["topics"]["out_of_scope_recall_ci"]
    assert low < report["out_of_scope_recall"] <= high
    assert report["decide_us_p50"] > 0
    picture = ET.fromstring(plot_scope(report))
    assert "random" in "".join(picture.itertext())


def test_examples_out_of_scope_need_not_be_given_for_training(tmp_path: Path) -> None:
    made = content()
    del made["oos_train"]
    assert None not in read_scope_labels(written(tmp_path, made)).train.topics


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda made: [], "is no object"),
        (lambda made: {**made, "val": []}, "no list 'val', or it is empty"),
        (lambda made: {key: made[key] for key in made if key != "oos_test"}, "no list 'oos_test'"),
        (lambda made: {**made, "test": [["eat"]]}, r"entry 0 of 'test' is not \[text, topic\]"),
        (lambda made: {**made, "test": [["eat", "sleep"]]}, "no training example has the topic 'sleep'"),
        (lambda made: {**made, "train": made["train"][:43]}, "Too few examples of travel"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, change: Any, says: str) -> None:
    path = written(tmp_path, change(content()))
    with pytest.raises(ConfigError, match=says):
        evaluate_scope(read_scope_labels(path), tiny_embedder(), seed=0, tell=lambda _: None)


def test_the_command_tells_it_as_json_and_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.distil.static_embeddings.static_embedder", tiny_embedder)
    path = str(written(tmp_path, content()))
    report = json.loads(CliRunner().invoke(evaluation, ["scope", "--data", path, "--json"]).stdout)
    assert {"in_scope_accuracy", "out_of_scope_recall", "threshold"} <= report.keys()
    table = CliRunner().invoke(evaluation, ["scope", "--data", path])
    assert table.exit_code == 0, table.output
    assert "out-of-scope recall" in table.stdout


def test_the_interval_of_a_share() -> None:
    assert wilson(50, 100) == [0.4038, 0.5962]
    low, high = wilson(100, 100)
    assert (low, high) == (0.963, 1.0)
