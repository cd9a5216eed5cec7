"""What a decision of the scheduler costs, and what its decisions are worth when there is too much to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deployments.bench.machine_facts import machine_facts
from deployments.bench.overload_main import run_overload
from deployments.bench.own_process import run_module


def run_scheduler_bench(
    systems: Sequence[str], *, seconds: float, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The fields of COMMANDS.md, and more. `seconds` is how long requests arrive in the overload runs, which
    take up to 13 s longer each. `say` is told what happens."""
    facts = machine_facts()
    say("cost of the scripts, calls per second, round trip (about a minute)")
    cost = run_module("deployments.bench.scheduler_cost")
    overload = {}
    for name in systems:
        say(f"{name} at twice its capacity for {seconds:g} s, and until the last request is decided")
        overload[name] = run_overload(name, seed=seed, seconds=seconds)
    return {**cost, "overload": overload, "seconds": seconds, "seed": seed, "machine": facts}
