"""Which cores the compared systems run on, and which ones everything else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pinning:
    """`systems` is where each gateway runs when it has its turn; `rest` is for the stub engine, Valkey and
    the load generator."""

    systems: frozenset[int]
    rest: frozenset[int]

    def __str__(self) -> str:
        if self.systems == self.rest:
            return "none"
        return f"each gateway on core {_list(self.systems)}; engine, Valkey and client on {_list(self.rest)}"


def choose_pinning(usable: frozenset[int], *, pin: bool) -> Pinning:
    """One core for the systems where there are two or more; with one there is nothing to separate."""
    if not pin or len(usable) < 2:
        return Pinning(usable, usable)
    first = min(usable)
    return Pinning(frozenset({first}), usable - {first})


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """What this thread starts meanwhile inherits them, with all its threads and children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _list(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))
