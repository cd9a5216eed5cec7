"""What an answer will say, fixed before its first token: the engine only has to tell when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from deployments.sim.prompt import Prompt
from deployments.sim.settings import OutputLength, SimSettings
from deployments.sim.tokens import MARKER, pieces, words

END = ""
"""Visible text of the end-of-sequence token. It is a token like any other and it is counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a response. `tokens` holds the visible text of each output token; `tool` is the
    function called, and then the text is its arguments. `stop_reason` is the stop string that was met."""

    prompt_tokens: int
    tokens: tuple[str, ...]
    finish_reason: str
    stop_reason: str | None = None
    tool: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def write_words(
    prompt: Prompt,
    limit_tokens: int,
    *,
    limit_is_stated: bool,
    seed: int,
    stops: Sequence[str],
    settings: SimSettings,
) -> Answer:
    """Marker and words, the same ones for the same prompt and seed."""
    digest = blake2b(b"%d/%d/" % (settings.seed, seed))
    digest.update(prompt.content)
    drawn = settings.output_length is OutputLength.DRAWN or not limit_is_stated
    length = _drawn_length(digest.digest(), *settings.drawn_tokens) if drawn else limit_tokens
    ended = drawn and length <= limit_tokens
    spoken = length - 1 if ended else limit_tokens
    tokens = [MARKER, *islice(words(digest.digest()), spoken - 1)]
    stopped = _cut_at_stop(tokens, stops)
    if stopped is not None:
        tokens, stop = stopped
        return Answer(prompt.tokens, tuple(tokens), "stop", stop_reason=stop)
    if ended:
        return Answer(prompt.tokens, (*tokens, END), "stop")
    return Answer(prompt.tokens, tuple(tokens), "length")


def write_text(
    text: str, prompt_tokens: int, limit_tokens: int, *, tool: str | None = None, finish_reason: str = "stop"
) -> Answer:
    """A given text, such as JSON: it cannot carry the marker. Cut off where the limit ends it."""
    tokens = [*pieces(text), END]
    if len(tokens) > limit_tokens:
        return Answer(prompt_tokens, tuple(tokens[:limit_tokens]), "length", tool=tool)
    return Answer(prompt_tokens, tuple(tokens), finish_reason, tool=tool)


def _drawn_length(digest: bytes, shortest: int, longest: int) -> int:
    return shortest + int.from_bytes(digest[:8], "big") % (longest - shortest + 1)


def _cut_at_stop(tokens: list[str], stops: Sequence[str]) -> tuple[list[str], str] | None:
    """Tokens up to the one that completes the first stop string, with the string and what follows it
    removed from their visible text. The marker is out of reach: an answer stays marked."""
    text = "".join(tokens)
    found = [(text.find(stop, len(MARKER)), stop) for stop in stops if stop]
    hits = [(at, stop) for at, stop in found if at >= 0]
    if not hits:
        return None
    cut, stop = min(hits)
    visible: list[str] = []
    start = 0
    for token in tokens:
        visible.append(token[: max(0, cut - start)])
        start += len(token)
        if start >= cut + len(stop):
            break
    return visible, stop
