"""One request of a run, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """`index` is the position in the whole run and seeds the prompt. `at_s` counts from the start of the
    run; in a closed loop it has no meaning and is 0. `blocks` are the trace's prefix hashes of 512 tokens
    each, empty where the trace has none. `tenant` is a name of the mix."""

    index: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    tenant: str = "default"
    task: str | None = None


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace file; `at_s` counts from the first one."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
