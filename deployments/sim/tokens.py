"""What a token is here: every 4 bytes of UTF-8 text, rounded up.

The simulator has no tokenizer. Output text is made of words of 4 ASCII bytes, so the rule holds for it as
well, with one exception: the opening marker is one token, because an answer must be marked as simulated
even if the caller allows a single token.
"""

from __future__ import annotations

from collections.abc import Iterator

BYTES_PER_TOKEN = 4
MARKER = "[simulated] "
WORDS = (
    *("sea ", "net ", "bay ", "ice ", "oar ", "sun ", "fog ", "wet "),
    *("cod ", "eel ", "fin ", "ray ", "old ", "new ", "red ", "far "),
)


def count_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def words(digest: bytes) -> Iterator[str]:
    """Endless words, one token each. Repeats after as many words as the digest has bytes."""
    while True:
        for byte in digest:
            yield WORDS[byte % len(WORDS)]


def pieces(text: str) -> list[str]:
    """Cuts a text into tokens: exact for ASCII, one token per 4 characters elsewhere, so that no
    character is torn apart."""
    return [text[start : start + BYTES_PER_TOKEN] for start in range(0, len(text), BYTES_PER_TOKEN)]
