"""Static embeddings and topics, with a made-up encoder whose words point where their field does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.router.array_file import ArrayFile, read_array_file, write_array_file
from cluster.router.embedding.examples import read_examples
from cluster.router.embedding.static import StaticEmbedder
from cluster.router.embedding.topics import TopicModel
from cluster.router.embedding.training import Examples, learn_topics
from deployments.distil.encoder import frequency_weights, principal
from tests.tiny_embedder import DIMS, OTHER, sentences, tiny_embedder, topic_examples


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return tiny_embedder()


@pytest.fixture(scope="module")
def model(embedder: StaticEmbedder) -> TopicModel:
    return learn_topics(embedder, topic_examples(), seed=0)


class TestStaticEmbedder:
    def test_a_text_is_the_mean_of_its_tokens(self, embedder: StaticEmbedder) -> None:
        rows = [embedder.tokenizer.token_to_id(word) for word in ("cook", "pasta")]
        mean = embedder.matrix[rows].mean(axis=0)
        assert embedder.embed("Cook PASTA!") == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)

    def test_without_known_words_it_is_zero(self, embedder: StaticEmbedder) -> None:
        assert not embedder.embed("").any()
        assert not embedder.embed("zzz").any()

    @given(text=st.text(alphabet=st.characters(codec=None), max_size=80))
    def test_any_text_has_a_vector_of_length_one_or_zero(self, embedder: StaticEmbedder, text: str) -> None:
        vector = embedder.embed(text)
        assert vector.shape == (DIMS,)
        assert float(vector @ vector) == pytest.approx(1, abs=1e-5) or not vector.any()

    def test_of_a_long_text_both_ends_are_read(self, embedder: StaticEmbedder) -> None:
        text = "cook " * 2000 + "plane " * 200_000 + "hotel " * 2000
        assert embedder.embed(text) @ embedder.embed("plane " * 2000) < 0.9

    def test_saved_and_loaded_it_is_the_same_to_half_precision(
        self, embedder: StaticEmbedder, tmp_path: Path
    ) -> None:
        embedder.save(tmp_path / "e.npz")
        again = StaticEmbedder.load(tmp_path / "e.npz")
        text = "please cook my dinner"
        assert again.embed(text) == pytest.approx(embedder.embed(text), abs=2e-3)
        assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]


class TestTopics:
    def test_known_work_is_told_apart(self, model: TopicModel) -> None:
        wanted = topic_examples(seed=7)
        found = [model.nearest(text).topic for text in wanted.texts]
        right = [one == other for one, other in zip(found, wanted.topics, strict=True)]
        assert np.mean(right) > 0.9

    def test_unknown_work_is_none_of_them(self, model: TopicModel) -> None:
        found = [model.nearest(text) for text in sentences(OTHER, 30, seed=9)]
        assert np.mean([each.topic is None for each in found]) > 0.9
        assert all(each.score < model.threshold for each in found if each.topic is None)

    def test_examples_out_of_scope_lower_the_scores_there(self, model: TopicModel) -> None:
        told = learn_topics(tiny_embedder(), topic_examples(others=30), seed=0)
        text = sentences(OTHER, 1, seed=11)[0]
        assert told.nearest(text).score < model.nearest(text).score

    def test_the_order_of_words_can_be_learned(self) -> None:
        texts = ("eat fly", "fly eat", "cook", "plane")
        model = learn_topics(tiny_embedder(), Examples(texts * 20, ("food", "travel") * 40), seed=0)
        assert model.scores(texts).argmax(axis=1).tolist() == [0, 1, 0, 1]

    def test_the_same_examples_and_seed_give_the_same(self, model: TopicModel) -> None:
        again = learn_topics(tiny_embedder(), topic_examples(), seed=0)
        assert (again.directions == model.directions).all()
        assert again.threshold == model.threshold

    def test_a_validation_part_sets_the_threshold(self) -> None:
        strict = learn_topics(tiny_embedder(), topic_examples(), validation=topic_examples(5, seed=3), seed=0)
        scores = strict.scores(topic_examples(5, seed=3).texts).max(axis=1)
        assert scores.min() == pytest.approx(strict.threshold), (
            "nothing of ten may be lost at one in a hundred"
        )

    def test_saved_and_loaded_it_decides_the_same(self, model: TopicModel, tmp_path: Path) -> None:
        model.save(tmp_path / "topics.npz")
        again = TopicModel.load(tmp_path / "topics.npz")
        for text in (*topic_examples(3).texts, *sentences(OTHER, 3, seed=5)):
            assert again.nearest(text).topic == model.nearest(text).topic
            assert again.nearest(text).score == pytest.approx(model.nearest(text).score, abs=5e-3)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (Examples((), ()), "no example with a topic"),
            (Examples(("eat",), (None,)), "no example with a topic"),
            (
                Examples(("eat",) * 4 + ("fly",) * 9, ("food",) * 4 + ("travel",) * 9),
                "Too few examples of food",
            ),
        ],
    )
    def test_too_few_examples_are_told_of(self, given: Examples, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            learn_topics(tiny_embedder(), given, seed=0)


class TestFiles:
    def test_what_is_no_such_file_is_told_of(self, tmp_path: Path, embedder: StaticEmbedder) -> None:
        path = tmp_path / "x.npz"
        with pytest.raises(ConfigError, match="cannot be read: No such file"):
            StaticEmbedder.load(path)
        path.write_text("no zip")
        with pytest.raises(ConfigError, match="no file of `sprat router embed`"):
            StaticEmbedder.load(path)
        embedder.save(path)
        with pytest.raises(
            ConfigError, match=r"'static embeddings' version 1, not 'topics'.*sprat router topics"
        ):
            TopicModel.load(path)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ConfigError, match="damaged"):
            StaticEmbedder.load(path)

    def test_a_part_that_is_not_there_is_told_of(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        write_array_file(path, ArrayFile({}, {}), kind="static embeddings", version=1)
        with pytest.raises(ConfigError, match="damaged"):
            StaticEmbedder.load(path)

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, header=np.array([{"kind": "x"}], dtype=object), allow_pickle=True)
        with pytest.raises(ConfigError, match="no file of"):
            read_array_file(path, kind="x", version=1, made_by="sprat")

    def test_a_folder_that_cannot_be_written_is_told_of(
        self, tmp_path: Path, embedder: StaticEmbedder
    ) -> None:
        with pytest.raises(ConfigError, match="cannot be written"):
            embedder.save(tmp_path / "no" / "x.npz")

    def test_examples_from_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        lines = [{"text": "eat", "topic": "food"}, {"text": "quark", "topic": None}]
        file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
        assert read_examples([file, file]) == Examples(("eat", "quark") * 2, ("food", None) * 2)

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "line 2 is no JSON"),
            ("[]", "line 2 is not"),
            ('{"text": 3, "topic": "a"}', "line 2 is not"),
            ('{"text": "a"}', "line 2 is not"),
            ('{"text": "a", "topic": ""}', "line 2: the topic is ''"),
            ('{"text": "a", "topic": 3}', "line 2: the topic is 3"),
        ],
    )
    def test_bad_examples_say_where(self, tmp_path: Path, line: str, says: str) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text('{"text": "eat", "topic": "food"}\n' + line + "\n")
        with pytest.raises(ConfigError, match=says):
            read_examples([file])


class TestDistillation:
    def test_principal_directions_keep_the_distances_that_matter(self) -> None:
        generator = np.random.default_rng(0)
        plane = generator.normal(size=(50, 2)) @ generator.normal(size=(2, 6)) + 5
        kept = principal(plane.astype(np.float32), 2)
        before = np.linalg.norm(plane[0] - plane[1:], axis=1)
        assert kept.shape == (50, 2)
        assert np.linalg.norm(kept[0] - kept[1:], axis=1) == pytest.approx(before, rel=1e-4)

    def test_frequent_tokens_count_less(self) -> None:
        weights = frequency_weights(30_000)
        assert (np.diff(weights) > 0).all()
        assert weights[0] < 0.01
        assert 0.9 < weights[-1] < 1
