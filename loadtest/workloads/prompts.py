"""Texts of a given length in tokens, without knowing the server's tokenizer.

The vocabulary is English words of three letters. With the space before it each is one token for the
byte-pair tokenizers of SmolLM2 and Qwen2.5 (checked: 5,000 random words are 5,000 tokens for both) and four
bytes, which is what sprat's simulated engine counts as one. Other tokenizers may differ, and chat templates
add tokens of their own; the report puts the server's count beside the planned one.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random

from loadtest.workloads.planned_call import PlannedCall
from loadtest.workloads.seeded import seeded

VOCABULARY = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old "
    "see two way who boy did its let put say she too use air act add age ago aim art ask bad bag bar bed big "
    "bit box bus buy car cat cup cut dog dry due ear eat end eye far few fit fly fun gas guy hit hot ice job "
    "key law lay leg lie lot low map may mix off oil own pay per raw red run sea set sit six sky son sun tax "
    "tea ten top try war win yes yet"
)
WORDS = tuple(VOCABULARY.split())

CHARACTERS_PER_TOKEN = 4.0
BLOCK_TOKENS = 512
"""Tokens behind one hash of a Mooncake trace."""

# Prefix caches share whole blocks from the start of a prompt (vLLM: 16 tokens). Texts that differ in their
# first words share none, whatever follows; so only these words are drawn for every text.
HEAD_WORDS = 12
FILLER_WORDS = 8192


class PromptWriter:
    """The same seed and call give the same text. Equal block hashes give equal blocks, so prompts share
    the prefixes that they share in the trace; prompts without hashes share none."""

    def __init__(self, seed: int, characters_per_token: float = CHARACTERS_PER_TOKEN) -> None:
        self._seed = seed
        self._characters_per_token = characters_per_token
        self._filler = _words(seeded(seed, "filler"), FILLER_WORDS)
        self._block = lru_cache(maxsize=4096)(self._new_block)

    def prompt(self, call: PlannedCall) -> str:
        length = self._characters(call.prompt_tokens)
        shared = "".join(map(self._block, call.blocks[: -(-call.prompt_tokens // BLOCK_TOKENS)]))
        missing = length - len(shared)
        own = self._text(f"call/{call.index}", missing) if missing > 0 else ""
        return (shared + own)[:length].rstrip()

    def _characters(self, tokens: int) -> int:
        return max(1, round(tokens * self._characters_per_token))

    def _new_block(self, block: int) -> str:
        return self._text(f"block/{block}", self._characters(BLOCK_TOKENS))

    def _text(self, name: str, length: int) -> str:
        random = seeded(self._seed, name)
        head = _words(random, HEAD_WORDS)
        repeats = -(-length // len(self._filler))
        return (head + self._filler * repeats)[:length]


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, k=count)) + " "
