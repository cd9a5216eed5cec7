"""Search over the settings of our kernels, for `kernels/settings`.

All of the search space is timed for each shape: it is small enough once it is compiled (`compile --search`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kernels import selection
from kernels.benchmark.cases import CaseBuilder
from kernels.benchmark.grid import Cell
from kernels.benchmark.rivals.ours import SpratKernels
from kernels.benchmark.timing import Clock
from kernels.benchmark.tuning import by_shape, fits, geometric_means, time_each
from kernels.selection import Settings, Shape


def tune(
    builder: CaseBuilder,
    clock: Clock,
    cells: Sequence[Cell],
    *,
    seconds: float,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Write the table that `kernels.selection` reads into `folder`, anew after each shape: nothing is lost if
    the run is cut short. Lines of other shapes stay."""
    stop_s = time.monotonic() + seconds
    path = folder / selection.table_path(torch.cuda.get_device_name()).name
    for shape, alike in by_shape(cells, shape_of).items():
        if time.monotonic() > stop_s:
            say(f"out of time before {shape}")
            return
        space = _search_space(shape)
        us = geometric_means([_times(builder, clock, cell, space) for cell in alike])
        chosen = min(us, key=lambda settings: us[settings])
        write_line(path, selection.table_line(shape, chosen))
        say(f"{shape}: {us[chosen]:.1f} µs with {chosen}, {us.get(space[0])} with the heuristic")


def compile_search_space(builder: CaseBuilder, cells: Sequence[Cell]) -> None:
    """Run each of the settings once: Triton keeps what it compiles on disk."""
    for shape, alike in by_shape(cells, shape_of).items():
        case = builder.build(alike[0])
        for settings in _search_space(shape):
            fits(SpratKernels(settings).prepare(case), sets=1)


def shape_of(cell: Cell) -> Shape:
    """All that the host knows of a batch when it chooses."""
    (linear,) = cell.linears
    return Shape(cell.tokens, linear.width_in, linear.widths_out, cell.max_rank, cell.max_loras)


def _search_space(shape: Shape) -> list[Settings]:
    """The heuristic's choice first."""
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    return list(dict.fromkeys(selection.search_space(shape, multiprocessors)))


def _times(
    builder: CaseBuilder, clock: Clock, cell: Cell, space: Sequence[Settings]
) -> dict[Settings, float]:
    case = builder.build(cell)
    return time_each(clock, case, {settings: SpratKernels(settings).prepare(case) for settings in space})


def write_line(path: Path, line: dict[str, Any]) -> None:
    """In place of the line of the same shape, if there is one."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"lines": []}
    others = [each for each in table["lines"] if {**each, "settings": None} != {**line, "settings": None}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps({'lines': [*others, line]}, indent=1)}\n", encoding="utf-8")
