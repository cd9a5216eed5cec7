"""A prompt as hashed n-grams: what a linear model reads of it, in a tenth of a millisecond and without a
vocabulary.

Two blocks, each weighted and scaled by itself: words and pairs of words; and characters, 2 to 4 bytes long
inside words, which know endings, formulas and other languages. All of it is arithmetic on the prompt's bytes
as one array; hashes are polynomials of the bytes and multiplications, the same in every process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BITS_PER_BLOCK = 17
BLOCK = 1 << BITS_PER_BLOCK
SIZE = 2 * BLOCK
"""Number of features: words first, then characters."""

LONGEST_TEXT = 8192
"""Characters that are read: of a longer prompt the first and the last half of that."""

MOST_BYTES = 4 * LONGEST_TEXT + 3
"""Of a text of so many characters in UTF-8, with the spaces around it."""

Counts = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Feature numbers in rising order, each once, and 1 + log of how often each stands there."""

_MARK = re.compile(r"[^\w\x00-\x7f]")
"""Marks and spaces outside ASCII. They end a word; letters outside ASCII are part of one."""

_SPACE, _SIGN, _LETTER = 0, 1, 2


def _kinds() -> NDArray[np.uint8]:
    kinds = np.full(256, _SIGN, dtype=np.uint8)
    for byte in range(256):
        if byte >= 0x80 or chr(byte).isalnum() or chr(byte) == "_":
            kinds[byte] = _LETTER
        elif chr(byte).isspace():
            kinds[byte] = _SPACE
    return kinds


def _powers(base: int) -> NDArray[np.uint64]:
    """1, base, base^2, … modulo 2^64."""
    factors = np.full(MOST_BYTES, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


_KIND = _kinds()
_BYTE = np.where(_KIND == _SPACE, ord(" "), np.arange(256)).astype(np.uint32)
_BASE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd (Knuth, TAOCP 3, 6.4)
_POWERS, _INVERSE_POWERS = _powers(_BASE), _powers(pow(_BASE, -1, 1 << 64))
_MIX = np.uint64(0xD6E8FEB86659FD93)  # odd, with as many ones as zeros
_VALUE = np.where(_KIND == _SPACE, 0, (np.arange(256, dtype=np.uint64) + np.uint64(1)) * _MIX)
_PAIR = np.uint64(0x100000001B3)  # of FNV-1a
_SHIFT_64 = np.uint64(64 - BITS_PER_BLOCK)
_SHIFT_32 = np.uint32(32 - BITS_PER_BLOCK)
_FACTORS = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))
"""One per length, so that they do not meet in one bucket (xxHash's and MurmurHash's primes)."""

_DAMPED: NDArray[np.float32] = (1 + np.log(np.maximum(np.arange(3 * MOST_BYTES), 1))).astype(np.float32)


def counts_of(text: str) -> Counts:
    """Of one prompt."""
    text = shortened(text).lower()
    if not text.isascii():
        text = _MARK.sub(" ", text)
    data = np.frombuffer(f" {text} ".encode("utf-8", "surrogatepass"), dtype=np.uint8)
    kind = _KIND[data]
    numbers = np.concatenate((*_words(data, kind), *_characters(data, kind)))
    if not len(numbers):
        return numbers, np.empty(0, dtype=np.float32)
    numbers.sort()
    changes = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    bounds = np.concatenate(((0,), changes, (len(numbers),)))
    return numbers[bounds[:-1]], _DAMPED[np.diff(bounds)]


def weighted(counts: Counts, weights: NDArray[np.float32]) -> Counts:
    """Each feature times its weight (shape (SIZE,)), each block scaled to length 1."""
    numbers, values = counts
    values = values * weights[numbers]
    middle = int(np.searchsorted(numbers, BLOCK))
    for block in (slice(0, middle), slice(middle, None)):
        length = np.sqrt(np.dot(values[block], values[block]))
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


def _words(data: NDArray[np.uint8], kind: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Words, and pairs of them; a sign is a word. Both arrays begin and end with a space.

    The hash of a word is the polynomial of its bytes. Spaces are worth nothing, so it is what the running sum
    grows by from one beginning to the next, moved to the power 0."""
    begins = kind == _SIGN
    begins[1:] |= kind[1:] > kind[:-1]  # a letter after a space or a sign
    starts = np.flatnonzero(begins)
    sums = np.cumsum(_VALUE[data] * _POWERS[: len(data)])
    before = sums[starts - 1]
    after = np.concatenate((before[1:], sums[-1:]))[: len(before)]
    single = (after - before) * _INVERSE_POWERS[starts]
    pairs = single[:-1] * _PAIR ^ single[1:]
    return ((single * _MIX) >> _SHIFT_64).astype(np.int32), ((pairs * _MIX) >> _SHIFT_64).astype(np.int32)


def _characters(data: NDArray[np.uint8], kind: NDArray[np.uint8]) -> list[NDArray[np.int32]]:
    """N-grams of bytes, packed into 32 bits each. A space stands only at their ends, and never alone."""
    byte = _BYTE[data]
    is_letter = kind != _SPACE
    two = (byte[:-1] << np.uint32(8)) | byte[1:]
    three = (two[:-1] << np.uint32(8)) | byte[2:]
    four = (three[:-1] << np.uint32(8)) | byte[3:]
    inside = is_letter[1:-1]
    kept = (two[is_letter[:-1] | is_letter[1:]], three[inside], four[inside[:-1] & inside[1:]])
    return [_hashed(each, factor) for each, factor in zip(kept, _FACTORS, strict=True)]


def _hashed(value: NDArray[np.uint32], factor: np.uint32) -> NDArray[np.int32]:
    """In place."""
    value ^= value >> np.uint32(15)
    value *= factor
    value >>= _SHIFT_32
    value |= np.uint32(BLOCK)
    return value.view(np.int32)
