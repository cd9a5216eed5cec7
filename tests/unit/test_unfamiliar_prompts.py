"""Prompts of another kind than the labelled ones: known as such, and judged by how hard they look."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.router.correctness import CorrectnessModel
from cluster.router.difficulty import SURFACE, Difficulty, surface_of
from cluster.router.familiarity import Familiarity, enough_of
from cluster.router.ngrams import counts_of

WORDS = ("river", "stone", "cloud", "amber", "field", "music", "paper", "glass", "north", "ember")


def questions(count: int) -> list[str]:
    """All of one form, of other words each."""
    generator = np.random.default_rng(0)
    return [
        f"Which {' '.join(generator.choice(WORDS, 6))} is it?\nA. yes\nB. no\nAnswer:" for _ in range(count)
    ]


def familiarity_of(prompts: list[str]) -> Familiarity:
    counts = [counts_of(prompt) for prompt in prompts]
    form = Familiarity.of(counts[::2])
    enough = enough_of(np.array([form.likeness(numbers) for numbers, _ in counts[1::2]]))
    return Familiarity.of(counts, enough)


def test_the_form_is_what_nearly_all_labelled_prompts_have() -> None:
    familiarity = familiarity_of(questions(200))
    known = [familiarity(counts_of(prompt)[0]) for prompt in questions(50)]
    assert np.mean(np.array(known) == 1) > 0.9
    assert familiarity(counts_of("Which lantern is it?\nA. yes\nB. no\nAnswer:")[0]) == 1
    half = familiarity(counts_of("Which of them, yes or no? Answer:")[0])
    assert 0 < half < 1
    for other in ("", "Summarise the attached report in three sentences.", "river stone cloud"):
        assert familiarity(counts_of(other)[0]) == 0


def test_labels_without_a_form_make_nothing_unfamiliar() -> None:
    generator = np.random.default_rng(0)
    prompts = ["".join(chr(97 + at) for at in generator.integers(0, 26, 12)) for _ in range(100)]
    assert familiarity_of(prompts)(counts_of("something else")[0]) == 1


def labelled(count: int) -> tuple[list[str], NDArray[np.bool_], list[str]]:
    """The more numerals, the more failures; one topic is harder than the other, and has shorter prompts."""
    generator = np.random.default_rng(1)
    prompts, right, groups = [], [], []
    for _ in range(count):
        numerals = int(generator.integers(0, 6))
        topic = int(generator.integers(0, 2))
        prompts.append(
            " ".join(
                ["word"] * int(generator.integers(10, 20) * (2 - topic)) + [str(n) for n in range(numerals)]
            )
        )
        wrong = 0.05 + 0.1 * numerals + 0.3 * topic
        right.append((generator.random() > wrong, generator.random() > wrong / 2))
        groups.append(f"topic {topic}")
    return prompts, np.array(right), groups


def test_difficulty_is_learned_within_topics() -> None:
    prompts, right, groups = labelled(3000)
    difficulty = Difficulty.fit(prompts, right, groups)
    slopes = dict(zip(SURFACE, difficulty.slopes, strict=True))
    assert all(slope >= 0 for slope in slopes.values())
    assert slopes["sentences"] == slopes["commas"] == 0, "they tell nothing here"

    weak, strong = np.array([difficulty.probabilities(f"word {'7 ' * n}") for n in (0, 3, 9)]).T
    assert slopes["numerals"] > 0.2
    assert (np.diff(weak) < 0).all()
    assert (strong > weak).all()
    assert (np.diff(strong - weak) > 0).all(), "the harder, the more the better model is worth"


def test_where_labels_show_nothing_the_longer_prompt_is_harder() -> None:
    right = np.tile([[True, False], [False, True]], (20, 1))
    difficulty = Difficulty.fit(["the same text"] * 40, right)
    short, long = difficulty.probabilities("a word"), difficulty.probabilities("a word " * 50)
    assert (long < short).all()


@pytest.mark.parametrize("text", ["", " ", "7", "?!", "\ud800", "x" * 20_000])
def test_any_text_has_a_surface(text: str) -> None:
    assert np.isfinite(surface_of(text)).all()


def test_unfamiliar_prompts_go_by_difficulty_alone() -> None:
    generator = np.random.default_rng(2)
    prompts = questions(120)
    right = np.column_stack((generator.random(120) < 0.6, generator.random(120) < 0.9))
    model = CorrectnessModel.fit(("small", "large"), prompts, right, seed=0)
    other = "Summarise the attached report in three sentences, please."
    np.testing.assert_array_equal(model.raw([other])[0], model.difficulty.probabilities(other))
    assert (model.raw(prompts[:5]) != [model.difficulty.probabilities(each) for each in prompts[:5]]).all()
