"""A prompt as hashed n-grams: what a linear model reads of it, in a quarter of a millisecond and without a
vocabulary.

Two blocks, each weighted and scaled by itself: words and pairs of words; and characters, 2 to 4 bytes long
inside words, which know endings, formulas and other languages. Hashes are those of CRC-32 and of a
multiplication, so they are the same in every process.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BITS_PER_BLOCK = 17
BLOCK = 1 << BITS_PER_BLOCK
SIZE = 2 * BLOCK
"""Number of features: words first, then characters."""

LONGEST_TEXT = 8192
"""Characters that are read: of a longer prompt the first and the last half of that."""

CHARACTERS = (2, 3, 4)
"""Lengths of n-grams, each made from the one before."""

_WORD = re.compile(r"\w+|[^\w\s]")
_SPACES = re.compile(r"\s+")
_SPACE = ord(" ")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_PAIR = np.uint64(0x100000001B3)  # of FNV-1a

Counts = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Feature numbers, each once, and 1 + log of how often each stands there."""


def counts_of(text: str) -> Counts:
    """Of one prompt."""
    text = shortened(text).lower()
    words, characters = _block(_word_hashes(text)), _block(_character_hashes(text))
    numbers = np.concatenate((words[0], characters[0] + BLOCK))
    return numbers, np.concatenate((words[1], characters[1]))


def weighted(counts: Counts, weights: NDArray[np.floating]) -> Counts:
    """Each feature times its weight (shape (SIZE,)), each block scaled to length 1."""
    numbers, values = counts
    values = values * weights[numbers]
    middle = int(np.searchsorted(numbers, BLOCK))
    for block in (slice(0, middle), slice(middle, None)):
        length = float(np.sqrt(np.dot(values[block], values[block])))
        if length:
            values[block] /= length
    return numbers, values


def inverse_document_frequencies(prompts: Iterable[Counts]) -> NDArray[np.float32]:
    """Smoothed, per feature: what stands in every prompt says little. 1 + log((1 + n) / (1 + df)); 0 for
    features that stand in fewer than two of them, which say nothing of others."""
    found = np.zeros(SIZE)
    total = 0
    for numbers, _ in prompts:
        found[numbers] += 1
        total += 1
    weights = np.where(found > 1, 1 + np.log((1 + total) / (1 + found)), 0.0)
    return weights.astype(np.float32)


def shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]} {text[-half:]}"


def _block(hashes: NDArray[np.uint64]) -> Counts:
    # As 32-bit numbers: sorting them is most of the work, and takes a third of the time.
    numbers = ((hashes * _MIX) >> np.uint64(64 - BITS_PER_BLOCK)).astype(np.int32)
    numbers, found = np.unique(numbers, return_counts=True)
    return numbers.astype(np.int64), 1 + np.log(found)


def _word_hashes(text: str) -> NDArray[np.uint64]:
    words = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _WORD.findall(text)]
    single = np.array(words, dtype=np.uint64) + np.uint64(1)
    pairs = single[:-1] * _PAIR ^ single[1:]
    return np.concatenate((single, pairs))


def _character_hashes(text: str) -> NDArray[np.uint64]:
    padded = f" {_SPACES.sub(' ', text).strip()} "
    data = np.frombuffer(padded.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.uint64)
    is_letter = data != _SPACE
    found = []
    value, inside = data, np.ones(len(data), dtype=bool)  # a space only at the ends: n-grams of one word
    for length in CHARACTERS:
        if len(data) < length:
            break
        value = (value[:-1] << np.uint64(8)) | data[length - 1 :]
        if length == CHARACTERS[0]:
            kept = is_letter[:-1] | is_letter[1:]
            inside = inside[:-1]
        else:
            kept = inside = inside[:-1] & is_letter[length - 2 : -1]
        found.append((value | np.uint64(length << 8 * length))[kept])
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)
