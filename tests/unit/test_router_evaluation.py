"""Label files, curves and protocols of `sprat eval router`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from cluster.errors import ConfigError
from cluster.router import neighbours, ngrams
from cluster.router.calibration import Calibration
from cluster.router.correctness import CorrectnessModel
from cluster.router.embedding.topics import TopicModel
from cluster.router.evaluation.curves import apgr_interval, curve, expected_calibration_error
from cluster.router.evaluation.labels import read_labels, read_model_labels
from cluster.router.evaluation.plot import plot_router
from cluster.router.evaluation.protocols import Protocol, evaluate
from cluster.router.evaluation.results import save
from cluster.router.evaluation.scorers import Embedding, Learned, PromptLength, Random
from cluster.router.neighbours import Neighbours
from deployments.cli.evaluate import evaluation
from deployments.cli.router import router
from tests.tiny_embedder import tiny_embedder, topic_examples

ROUTELLM = Path(__file__).parents[3] / "shared" / "data" / "routellm"
EASY, HARD = "what colour is the sky over", "prove the theorem about the integral of"


def rows(count: int, offset: int = 0) -> list[tuple[str, bool, bool]]:
    """The weak model is right on the easy ones, the strong one on nearly all."""
    found = []
    for number in range(offset, offset + count):
        hard = number % 2 == 1
        prompt = f"{HARD if hard else EASY} {number}"
        found.append((prompt, not hard, number % 10 != 0))
    return found


def write(
    path: Path, labelled: list[tuple[str, bool, bool]], values: tuple[str, str] = ("True", "False")
) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "small", "large", "subject"))
        for prompt, weak, strong in labelled:
            writer.writerow((prompt, values[not weak], values[not strong], "x"))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"part{number}.csv", rows(40, 40 * number)) for number in range(6)]


class TestLabels:
    def test_the_stronger_model_is_the_one_with_the_higher_mean(self, files: list[Path]) -> None:
        labels = read_labels(files)
        assert (labels.weak_model, labels.strong_model, len(labels)) == ("small", "large", 240)
        assert labels.weak_accuracy == 0.5
        assert labels.groups[0] == "part0"
        assert read_labels(files, strong="small").strong_model == "small"

    def test_ones_and_zeros_and_other_columns(self, tmp_path: Path) -> None:
        labels = read_labels([write(tmp_path / "a.csv", rows(30), ("1", "0"))])
        assert labels.weak == tuple(weak for _, weak, _ in rows(30))

    def test_contaminated_prompts_are_left_out(self, files: list[Path], tmp_path: Path) -> None:
        drop = tmp_path / "drop.jsonl"
        drop.write_text(json.dumps({"eval_prompt": rows(1)[0][0]}) + "\n" + json.dumps(rows(2)[1][0]) + "\n")
        assert len(read_labels(files, drop=[drop])) == 238

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("question,a,b\nx,True,False\n", "no column 'prompt'"),
            ("prompt,a\nx,True\n", "exactly two columns"),
            ("prompt,a,b,c\nx,True,False,True\n", "exactly two columns"),
            ("prompt,a,b\nx,True,maybe\n", "exactly two columns"),
            ("prompt,a,b\n,True,False\n", "line 2 is empty"),
            ("prompt,a,b\nx,True,False\n", "too few"),
            ("", "no columns"),
        ],
    )
    def test_bad_files_say_what_is_wrong(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "bad.csv"
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_labels([path])

    def test_files_of_other_models_are_not_mixed(self, files: list[Path], tmp_path: Path) -> None:
        other = tmp_path / "other.csv"
        other.write_text(files[0].read_text().replace("small", "tiny"))
        with pytest.raises(ConfigError, match="same models"):
            read_labels([*files, other])
        with pytest.raises(ConfigError, match="--strong 'gpt'"):
            read_labels(files, strong="gpt")


class TestModelLabels:
    def test_any_number_of_models(self, tmp_path: Path) -> None:
        three, other_order = tmp_path / "a.csv", tmp_path / "b.csv"
        three.write_text("prompt,s,m,l\n" + "".join(f"p{at},1,0,{at % 2}\n" for at in range(20)))
        other_order.write_text("l,prompt,m,s\n1,q,0,0\n")
        labels = read_model_labels([three, other_order])
        assert labels.models == ("s", "m", "l")
        assert labels.right[1].tolist() == [True, False, True]
        assert labels.right[20].tolist() == [False, False, True]
        assert labels.groups[19:] == ("a", "b")

    @pytest.mark.parametrize(
        ("rows_of_file", "says"),
        [
            (["p,1,0"] * 30, "nothing to learn"),
            (["p,maybe,x"] * 30, "columns of true/false or 1/0 are needed, one per model; found none"),
            (["p,1,0", "q,0,1"], "2 labelled prompts are too few"),
        ],
    )
    def test_what_cannot_be_learned_from_is_told_of(
        self, tmp_path: Path, rows_of_file: list[str], says: str
    ) -> None:
        path = tmp_path / "bad.csv"
        path.write_text("\n".join(["prompt,a,b", *rows_of_file]) + "\n")
        with pytest.raises(ConfigError, match=says):
            read_model_labels([path])


class TestCurves:
    WEAK = np.array([True, False, True, False])
    STRONG = np.array([True, True, False, True])

    def test_by_hand(self) -> None:
        made = curve(np.array([1.0, 4.0, 2.0, 3.0]), self.WEAK, self.STRONG, seed=0)
        assert made.pgr.tolist() == [0, 1, 2, 1, 1]  # up: 2nd, 4th, 3rd (which the strong one loses), 1st
        assert made.apgr == pytest.approx((0.5 + 1.5 + 1.5 + 1) / 4)
        assert (made.cpt(0.5), made.cpt(0.8), made.cpt(3.0)) == (0.25, 0.25, None)

    @given(st.integers(0, 100))
    def test_equal_scores_are_a_random_router(self, seed: int) -> None:
        made = curve(np.zeros(4), self.WEAK, self.STRONG, seed)
        assert made.pgr[0] == 0
        assert made.pgr[-1] == 1

    def test_no_gap_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no gap"):
            curve(np.arange(4.0), self.WEAK, self.WEAK, seed=0)

    def test_the_interval_holds_the_estimate_and_shrinks_with_data(self) -> None:
        generator = np.random.default_rng(0)

        def interval(count: int) -> tuple[float, float, float]:
            weak, strong = generator.random(count) < 0.5, generator.random(count) < 0.9
            scores = generator.random(count) - weak
            low, high = apgr_interval(scores, weak, strong, seed=0)
            return low, curve(scores, weak, strong, 0).apgr, high

        (low, value, high), (low2, value2, high2) = interval(200), interval(5000)
        assert low < value < high
        assert low2 < value2 < high2
        assert high2 - low2 < high - low

    def test_calibration_error(self) -> None:
        right = np.array([True] * 8 + [False] * 2)
        assert expected_calibration_error(np.full(10, 0.8), right) == pytest.approx(0)
        assert expected_calibration_error(np.full(10, 0.3), right) == pytest.approx(0.5)
        assert expected_calibration_error(np.ones(10), right) == pytest.approx(0.2)


class TestNgrams:
    @given(st.text(max_size=60))
    def test_any_text_has_numbers_in_range_each_once(self, text: str) -> None:
        numbers, values = ngrams.counts_of(text)
        assert len(set(numbers.tolist())) == len(numbers) == len(values)
        assert all(0 <= number < ngrams.SIZE for number in numbers)
        assert (np.diff(numbers) > 0).all()
        assert (values >= 1).all()

    def test_they_are_the_same_in_every_process(self) -> None:
        numbers, _ = ngrams.counts_of("Match the model to the task")
        assert numbers[:3].tolist() == [12988, 28529, 46286]

    def test_upper_case_and_spaces_say_nothing(self) -> None:
        first, second = ngrams.counts_of("A  big\n\nDog"), ngrams.counts_of("a big dog")
        assert all((one == other).all() for one, other in zip(first, second, strict=True))

    def test_blocks_have_length_one(self) -> None:
        _, values = ngrams.weighted(ngrams.counts_of("some words here"), np.ones(ngrams.SIZE))
        assert np.dot(values, values) == pytest.approx(2)

    def test_a_long_prompt_is_read_at_both_ends(self) -> None:
        assert ngrams.shortened("a" * 5000 + "b" * 5000) == "a" * 4096 + " " + "b" * 4096
        assert ngrams.shortened("short") == "short"


class TestCorrectness:
    def test_it_learns_which_prompts_are_hard(self) -> None:
        labelled = rows(200)
        prompts = [prompt for prompt, _, _ in labelled]
        right = np.array([(weak, strong) for _, weak, strong in labelled])
        model = CorrectnessModel.fit(("small", "large"), prompts, right, seed=0)
        (easy, hard) = model.probabilities((f"{EASY} 999", f"{HARD} 998"))
        assert easy[0] > 0.9
        assert hard[0] < 0.2
        assert 0.7 < hard[1] <= 0.995
        again = CorrectnessModel.fit(("small", "large"), prompts, right, seed=0)
        assert (again.raw(prompts[:5]) == model.raw(prompts[:5])).all()

    def test_saved_and_loaded_it_is_the_same(self, tmp_path: Path) -> None:
        labelled = rows(60)
        prompts = [prompt for prompt, _, _ in labelled]
        right = np.array([(weak, strong, True) for _, weak, strong in labelled])
        model = CorrectnessModel.fit(("small", "medium", "large"), prompts, right, seed=0)
        model.save(tmp_path / "m.npz")
        again = CorrectnessModel.load(tmp_path / "m.npz")
        assert again.models == ("small", "medium", "large")
        assert (again.raw(prompts) == model.raw(prompts)).all()
        assert (again.probabilities(prompts) == model.probabilities(prompts)).all()
        assert again.held_out.probabilities.shape == again.held_out.right.shape == (60, 3)
        assert (again.held_out.right == right).all()

    def test_held_out_probabilities_are_calibrated(self) -> None:
        generator = np.random.default_rng(0)
        hard = generator.random(400) < 0.5
        prompts = [f"{HARD if each else EASY} {at}" for at, each in enumerate(hard)]
        right = (generator.random(400) < np.where(hard, 0.3, 0.9))[:, None]
        held_out = CorrectnessModel.fit(("one",), prompts, right, seed=0).held_out
        assert held_out.probabilities[hard].mean() == pytest.approx(right[hard].mean(), abs=0.03)
        assert held_out.probabilities[~hard].mean() == pytest.approx(right[~hard].mean(), abs=0.03)

    def test_too_few_prompts_are_told_of(self) -> None:
        with pytest.raises(ConfigError, match="19 labelled prompts are too few"):
            CorrectnessModel.fit(("a",), ["x"] * 19, np.ones((19, 1), dtype=bool), seed=0)

    def test_a_file_of_wrong_shapes_is_told_of(self, tmp_path: Path) -> None:
        labelled = rows(40)
        right = np.array([[weak] for _, weak, _ in labelled])
        model = CorrectnessModel.fit(("a",), [prompt for prompt, _, _ in labelled], right, seed=0)
        path = tmp_path / "m.npz"
        replace(model, weights=model.weights[:-1]).save(path)
        with pytest.raises(ConfigError, match=r"damaged.*sprat router train"):
            CorrectnessModel.load(path)

    def test_neighbours_answer_for_those_like_them(self) -> None:
        matrix = csr_array(np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]]))
        near = Neighbours.of(matrix, np.array([[1.0], [1], [-1], [-1]], dtype=np.float32), left_out=2)
        found = near.outcome(csr_array(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])))[:, 0]
        assert found.tolist() == pytest.approx([0.8, -0.8, 0])  # two of weight 1 beside a prior of 0.5

    def test_a_calibration_rises_and_is_never_certain(self) -> None:
        scores = np.linspace(0, 1, 100)
        fitted = Calibration.of(scores, scores > 0.5)
        read = fitted(np.array([-5.0, 0.1, 0.4, 0.6, 9.0]))
        assert (np.diff(read) >= 0).all()
        assert (read[0], read[-1]) == (0.005, 0.995)


class TestEvaluate:
    def report(
        self, files: list[Path], protocol: Protocol, train: list[Path] | None = None
    ) -> dict[str, Any]:
        learn_from = read_labels(train) if train else None
        scorers = (Learned(), Embedding(tiny_embedder()), PromptLength(), Random())
        return evaluate(protocol, read_labels(files), learn_from, scorers, seed=1, tell=lambda _: None)

    @pytest.mark.parametrize("protocol", [Protocol.IN, Protocol.OUT])
    def test_what_can_be_learned_is_learned(self, files: list[Path], protocol: Protocol) -> None:
        report = self.report(files, protocol)
        policies = report["policies"]
        assert policies["learned"]["apgr"] > 0.7 > policies["random"]["apgr"]
        assert policies["learned"]["cpt50"] < 0.35
        low, high = policies["learned"]["apgr_ci"]
        assert low < policies["learned"]["apgr"] < high
        assert policies["learned"]["ece"] < 0.15
        assert policies["prompt_length"]["ece"] is None
        assert 0 < policies["learned"]["decide_us_p50"] <= policies["learned"]["decide_us_p99"]
        assert policies["learned"]["decisions_per_s"] > 0
        assert policies["embedding"]["ece"] is not None

    def test_transfer_learns_from_the_other_files_only(self, files: list[Path]) -> None:
        report = self.report(files[:2], Protocol.TRANSFER, files[2:])
        assert report["n"] == 80
        assert report["policies"]["learned"]["apgr"] > 0.7
        with pytest.raises(ConfigError, match="--train goes with"):
            self.report(files, Protocol.TRANSFER)

    def test_too_few_files_to_leave_out(self, files: list[Path]) -> None:
        with pytest.raises(ConfigError, match="are too few"):
            self.report(files[:3], Protocol.OUT)

    def test_results_are_saved_with_their_plot(self, files: list[Path], tmp_path: Path) -> None:
        report = self.report(files, Protocol.IN)
        table, picture = save(report, "router-in", plot_router(report), tmp_path / "results")
        assert json.loads(table.read_text()) == report
        assert table.name == f"{report['date'][:10]}-router-in.json"
        assert "learned: APGR" in picture.read_text()
        assert ET.parse(picture).getroot().tag.endswith("svg")


@pytest.fixture
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.distil.static_embeddings.static_embedder", tiny_embedder)


@pytest.mark.usefixtures("_no_weights")
class TestCommand:
    def test_files_in_a_row_and_json(self, files: list[Path]) -> None:
        names = [str(file) for file in files]
        done = CliRunner().invoke(
            evaluation,
            ["router", "--labels", *names[:2], "--train", *names[2:], "--protocol", "transfer", "--json"],
        )
        report = json.loads(done.stdout)
        assert (done.exit_code, report["protocol"], report["n"]) == (0, "transfer", 80)
        assert {"learned", "embedding", "prompt_length", "random"} <= report["policies"].keys()

    def test_an_empty_folder_is_told_of(self, files: list[Path], tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        options = ["router", "--labels", str(tmp_path / "none"), "--train", str(files[0])]
        done = CliRunner().invoke(evaluation, [*options, "--protocol", "transfer"])
        assert isinstance(done.exception, ConfigError)
        assert "0 labelled prompts are too few" in str(done.exception)

    def test_a_folder_and_a_table(self, files: list[Path]) -> None:
        done = CliRunner().invoke(
            evaluation, ["router", "--labels", str(files[0].parent), "--protocol", "out", "--seed", "3"]
        )
        assert done.exit_code == 0, done.output
        assert "240 prompts, protocol out: small is right on 50.0%" in done.stdout


class TestTraining:
    def test_labels_become_a_model(self, files: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "model.npz"
        done = CliRunner().invoke(
            router, ["train", "--labels", *map(str, files), "--out", str(out), "--new-topics", "--json"]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == {
            "out": str(out),
            "prompts": 240,
            "models": {"small": 0.5, "large": 0.9},
            "seed": 0,
        }
        assert CorrectnessModel.load(out).models == ("small", "large")

    @pytest.mark.usefixtures("_no_weights")
    def test_examples_become_topics(self, tmp_path: Path) -> None:
        lines = [
            json.dumps({"text": text, "topic": topic}) for text, topic in zip(*topic_examples(), strict=True)
        ]
        (tmp_path / "examples.jsonl").write_text("\n".join(lines))
        out = tmp_path / "topics.npz"
        options = ["topics", "--examples", str(tmp_path / "examples.jsonl"), "--out", str(out)]
        done = CliRunner().invoke(router, options)
        assert done.exit_code == 0, done.output
        assert "topics: 2" in done.stdout
        assert TopicModel.load(out).nearest("cook the pasta").topic == "food"


@pytest.mark.skipif(not ROUTELLM.is_dir(), reason="RouteLLM's labels are not on this machine")
def test_real_labels_are_read() -> None:
    labels = read_labels(
        sorted((ROUTELLM / "mmlu").glob("*.csv")), drop=[ROUTELLM / "mmlu_contaminated_prompts.jsonl"]
    )
    assert len(labels) == 14_037
    assert (round(labels.weak_accuracy, 4), round(labels.strong_accuracy, 4)) == (0.6809, 0.8059)
    lengths = np.array([float(len(prompt)) for prompt in labels.prompts])
    made = curve(lengths, np.array(labels.weak), np.array(labels.strong), seed=0)
    assert made.apgr == pytest.approx(0.586, abs=0.002), "as published for prompt length alone"


def test_a_decision_does_not_grow_with_the_labels_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST", 40)
    prompts = [f"{word} {number}" for number in range(60) for word in ("sun", "rain")]
    right = np.array([[prompt.startswith("sun"), True] for prompt in prompts])

    model = CorrectnessModel.fit(("small", "large"), prompts, right, seed=0)

    assert model.neighbours.outcomes.shape == (40, 2)
    sun, rain = model.probabilities(["sun 5", "rain 5"])[:, 0]
    assert sun > rain


@pytest.mark.parametrize("count", [30, 400])
def test_one_prompt_gets_what_it_gets_among_others(count: int) -> None:
    generator = np.random.default_rng(3)
    words = [f"word{number}" for number in range(80)]
    prompts = [" ".join(generator.choice(words, 12)) for _ in range(count)]
    right = generator.random((count, 3)) < [0.4, 0.6, 0.8]
    model = CorrectnessModel.fit(("a", "b", "c"), prompts, right, seed=0)
    asked = [*prompts[:5], "", "nothing of this is known", "word1 " * 3000]

    together = model.raw(asked)

    for row, prompt in enumerate(asked):
        np.testing.assert_allclose(model.raw([prompt])[0], together[row], rtol=1e-3, atol=1e-5)
