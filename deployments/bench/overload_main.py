"""The overload comparison: one trace at twice the capacity, each system in a process of its own.

`python -m deployments.bench.overload_main --system fifo --seed 1 --seconds 12` runs one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from deployments.bench.arrivals import Fleet, offered_load, poisson_arrivals
from deployments.bench.fifo_queue import fifo_queue
from deployments.bench.overload import QueueUnderTest, replay
from deployments.bench.overload_metrics import report
from deployments.bench.own_process import run_module
from deployments.bench.ray_capacity_queue import IMPATIENT, ray_capacity_queue
from deployments.bench.sprat_queue import sprat_queue

System = Callable[[Fleet], AbstractAsyncContextManager[QueueUnderTest]]
"""Starts a system for a fleet, ready for requests, and stops it afterwards."""

SYSTEMS: dict[str, System] = {
    "sprat": sprat_queue,
    "fifo": fifo_queue,
    "fifo+deadlines": partial(fifo_queue, heeds_deadlines=True),
    "ray_capacity_queue": ray_capacity_queue,
    "ray_capacity_queue+impatient": partial(ray_capacity_queue, settings=IMPATIENT),
}
FLEET = Fleet()
OVERLOAD = 2.0
SECONDS = 12.0
"""Longer than the longest deadline. A run takes up to 13 s more, until the last request is decided."""


def run_overload(system: str, *, seed: int, seconds: float = SECONDS) -> dict[str, Any]:
    """The row of one system, as `run_one` gives it, from a process of its own: Ray reads its environment and
    its token once in a process."""
    options = ("--system", system, "--seed", str(seed), "--seconds", str(seconds))
    return run_module("deployments.bench.overload_main", *options)


async def run_one(system: System, seed: int, seconds: float) -> dict[str, Any]:
    """The row of one system (`overload_metrics.report`), with what the system says of itself."""
    trace = poisson_arrivals(seed, seconds, FLEET, overload=OVERLOAD)
    async with system(FLEET) as queue:
        gc.collect()
        gc.freeze()  # a full collection of all that Ray has loaded halts the replay for a tenth of a second
        replayed = await replay(trace, queue)
        details = await queue.details()
    return {
        **report(replayed, seconds, FLEET),
        "offered_load": offered_load(trace, seconds, FLEET),
        "details": details,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="internal: one system of the overload comparison")
    parser.add_argument("--system", choices=list(SYSTEMS), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    try:
        row = asyncio.run(run_one(SYSTEMS[arguments.system], arguments.seed, arguments.seconds))
    except KeyboardInterrupt:
        sys.exit(130)
    json.dump(row, sys.stdout)


if __name__ == "__main__":
    main()
