"""Prompt and output lengths for arrivals that bring none of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from loadtest.bad_input import BadInput
from loadtest.workloads.grammar import TRACES
from loadtest.workloads.planned_call import TraceRow

DrawLengths = Callable[[Random], TraceRow]

FORMS = "PROMPT,OUTPUT in tokens, each N or LOW-HIGH, or a trace (azure-code, mooncake, trace:FILE)"


def is_trace(text: str) -> bool:
    return text in TRACES or text.startswith("trace:")


def from_rows(rows: Sequence[TraceRow]) -> DrawLengths:
    """Requests of a trace in random order, each with its own pair of lengths and its prefix."""
    return lambda random: random.choice(rows)


def parse_lengths(text: str) -> DrawLengths:
    try:
        prompt, output = (_bounds(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--lengths {text!r}: use {FORMS}") from error
    return lambda random: TraceRow(0.0, random.randint(*prompt), random.randint(*output))


def _bounds(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    bounds = int(low), int(high or low)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(text)
    return bounds
