"""Search over the settings that vLLM reads from JSON, so that it is compared at its best.

Shrink and expand are tuned alone: neither's settings change the other's time. For each shape the search
starts from the best settings of the last shape with as many slices and changes one number at a time, twice
over; a grid of all combinations would compile for hours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark.cases import Case, CaseBuilder
from kernels.benchmark.grid import Cell
from kernels.benchmark.rivals.files import Source
from kernels.benchmark.rivals.vllm_kernels import KernelFlags, VllmKernels, gpu_file_name, tuned_files
from kernels.benchmark.timing import Clock
from kernels.benchmark.tuning import by_shape, geometric_means, time_each

Settings = dict[str, int | None]

SPACE: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "shrink": {
        "split_k": (1, 2, 4, 8, 16, 32, 64),
        "block_k": (32, 64, 128, 256),
        "block_n": (16, 32, 64),
        "block_m": (16, 32, 64),
        "num_stages": (2, 3, 4),
        "num_warps": (2, 4, 8),
    },
    "expand": {
        "block_n": (32, 64, 128, 256),
        "block_m": (16, 32, 64),
        "block_k": (16, 32, 64),
        "num_stages": (2, 3, 4),
        "num_warps": (2, 4, 8),
    },
}
START: Mapping[str, Settings] = {
    "shrink": {
        "block_m": 32,
        "block_n": 16,
        "block_k": 256,
        "split_k": 8,
        "group_size_m": 8,
        "num_warps": 4,
        "num_ctas": 1,
        "num_stages": 2,
        "max_nreg": None,
    },
    "expand": {
        "block_m": 16,
        "block_n": 128,
        "block_k": 16,
        "num_warps": 4,
        "num_ctas": 1,
        "num_stages": 2,
        "max_nreg": None,
    },
}


def tune(
    builder: CaseBuilder,
    clock: Clock,
    source: Source,
    cells: Sequence[Cell],
    *,
    seconds: float,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Write the files that vLLM looks for into `folder`, anew after each shape: nothing is lost if the run
    is cut short, and vLLM takes the nearest shape for one that is missing."""
    stop_s = time.monotonic() + seconds
    kernels = VllmKernels("tuning", source, KernelFlags())
    paths = [folder / name for name in tuned_files(gpu_file_name(torch.cuda.get_device_name()))]
    best: dict[tuple[str, int], Settings] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for shape, alike in by_shape(cells, lambda cell: (keys("shrink", cell), keys("expand", cell))).items():
        if time.monotonic() > stop_s:
            say(f"out of time before {alike[0]}")
            return
        cases = [builder.build(cell) for cell in _different_batches(alike)]
        slices = len(cases[0].linears[0].linear.widths_out)
        for op, path, place in zip(SPACE, paths, shape, strict=True):
            start = best.get((op, slices), START[op])
            chosen, us = search(start, SPACE[op], _timer(kernels, clock, cases, op))
            best[op, slices] = chosen
            _write(path, place, chosen)
            say(f"{alike[0]}: {op} {us:.1f} µs with {chosen}")


def keys(op: str, cell: Cell) -> tuple[str, ...]:
    """Where vLLM looks: `max_loras` counts the base rows' entry too, k and n are those of the product."""
    (linear,) = cell.linears
    k, n = linear.width_in, cell.max_rank
    if op == "expand":
        k, n = cell.max_rank, max(linear.widths_out)
    return tuple(str(each) for each in (cell.max_loras + 1, len(linear.widths_out), cell.tokens, k, n))


def search(
    start: Settings, space: Mapping[str, Sequence[int]], us_of: Callable[[Settings], float]
) -> tuple[Settings, float]:
    """Change one number at a time to the fastest value, in the order of `space`, twice over."""
    best, best_us = dict(start), us_of(start)
    for name, values in [*space.items()] * 2:
        for value in values:
            candidate = {**best, name: value}
            if candidate != best and (us := us_of(candidate)) < best_us:
                best, best_us = candidate, us
    return best, best_us


def _different_batches(cells: Iterable[Cell]) -> list[Cell]:
    """vLLM computes all of the largest rank whatever the true ranks are."""
    return list({(cell.adapters, cell.base_share): cell for cell in cells}.values())


def _timer(kernels: VllmKernels, clock: Clock, cases: Sequence[Case], op: str) -> Callable[[Settings], float]:
    """µs of an op under settings; infinite where it does not run."""

    def us_of(settings: Settings) -> float:
        runs = [kernels.prepare_half(case, op, settings) for case in cases]
        times = [time_each(clock, case, {op: run}) for case, run in zip(cases, runs, strict=True)]
        return geometric_means(times).get(op, float("inf"))

    return us_of


def _write(path: Path, place: Sequence[str], settings: Settings) -> None:
    """Nested by the parts of `place`, beside what is there."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    *parents, last = place
    inner = table
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = settings
    path.write_text(f"{json.dumps(table, indent=1)}\n", encoding="utf-8")
