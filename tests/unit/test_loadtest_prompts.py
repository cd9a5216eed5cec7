"""Synthetic prompts: length, determinism, shared prefixes."""

from __future__ import annotations

from itertools import takewhile

import pytest

from loadtest.workloads.planned_call import PlannedCall
from loadtest.workloads.prompts import BLOCK_TOKENS, WORDS, PromptWriter


def call(index: int, tokens: int, blocks: tuple[int, ...] = ()) -> PlannedCall:
    return PlannedCall(index, 0.0, tokens, 1, blocks)


def shared_words(one: str, other: str) -> int:
    pairs = zip(one.split(), other.split(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@pytest.mark.parametrize("tokens", [1, 2, 11, 12, 13, 511, 512, 513, 9000, 40_000])
def test_a_prompt_has_one_word_per_token(tokens: int) -> None:
    prompt = PromptWriter(1).prompt(call(0, tokens))

    assert len(prompt.split()) == tokens
    assert set(prompt.split()) <= set(WORDS)


def test_all_words_have_the_length_that_the_calibration_says() -> None:
    assert {len(word) for word in WORDS} == {3}
    assert len(set(WORDS)) == len(WORDS)


def test_other_characters_per_token_change_the_length() -> None:
    assert len(PromptWriter(1, 5.0).prompt(call(0, 1000))) == pytest.approx(5000, abs=1)


def test_the_same_seed_and_call_give_the_same_text_and_others_another() -> None:
    text = PromptWriter(1).prompt(call(3, 300))

    assert PromptWriter(1).prompt(call(3, 300)) == text
    assert shared_words(text, PromptWriter(1).prompt(call(4, 300))) < 5
    assert shared_words(text, PromptWriter(2).prompt(call(3, 300))) < 5


def test_equal_hashes_are_equal_blocks_and_different_ones_share_nothing() -> None:
    writer = PromptWriter(1)
    base = writer.prompt(call(0, 3 * BLOCK_TOKENS, (5, 6, 7)))
    same_two = writer.prompt(call(1, 3 * BLOCK_TOKENS, (5, 6, 8)))
    other = writer.prompt(call(2, 3 * BLOCK_TOKENS, (9, 6, 7)))

    assert 2 * BLOCK_TOKENS <= shared_words(base, same_two) < 2 * BLOCK_TOKENS + 5
    assert shared_words(base, other) < 5
    assert base.split()[BLOCK_TOKENS:] == other.split()[BLOCK_TOKENS:]


def test_a_clipped_prompt_keeps_its_prefix() -> None:
    writer = PromptWriter(1)
    whole = writer.prompt(call(0, 1500, (5, 6, 7)))

    assert whole.startswith(writer.prompt(call(0, 700, (5, 6, 7))))


def test_a_prompt_that_is_longer_than_its_hashes_ends_with_a_text_of_its_own() -> None:
    writer = PromptWriter(1)
    one, other = (writer.prompt(call(index, 600, (5,))) for index in (0, 1))

    assert len(one.split()) == len(other.split()) == 600
    assert BLOCK_TOKENS <= shared_words(one, other) < BLOCK_TOKENS + 5
