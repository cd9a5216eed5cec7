"""What both searches over settings share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import exp, log
from typing import TypeVar

from triton.runtime.errors import OutOfResources, PTXASError

from kernels.benchmark.cases import Case, Run
from kernels.benchmark.grid import LAYER, Cell
from kernels.benchmark.timing import Clock

Key = TypeVar("Key")
Name = TypeVar("Name")


def by_shape(cells: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    """Cells that settings cannot tell apart, in the order of the grid: one choice has to suit them all."""
    shapes: dict[Key, list[Cell]] = {}
    for cell in cells:
        if cell.projection != LAYER:
            shapes.setdefault(key(cell), []).append(cell)
    return shapes


def fits(run: Run, sets: int) -> bool:
    """Whether it runs at all: some settings need more of the device than there is."""
    try:
        for index in range(sets):
            run(index)
    except (OutOfResources, PTXASError):
        return False
    return True


def time_each(clock: Clock, case: Case, runs: Mapping[Name, Run]) -> dict[Name, float]:
    """µs, cold, of those that fit."""
    recordings = {
        str(number): clock.record([partial(run, index) for index in range(case.sets)])
        for number, run in enumerate(runs.values())
        if fits(run, case.sets)
    }
    timings = clock.time(recordings, [tensor for each in case.linears for tensor in (each.x, each.y)])
    names = list(runs)
    return {names[int(number)]: timing.us_p50 for number, timing in timings.items()}


def geometric_means(times: Sequence[Mapping[Name, float]]) -> dict[Name, float]:
    """Over the cells, of what ran on all of them."""
    everywhere = [name for name in times[0] if all(name in each for each in times)]
    return {name: exp(sum(log(each[name]) for each in times) / len(times)) for name in everywhere}
