"""Which path and which block sizes a launch uses: decided on the host from shapes alone.

Under CUDA graphs the choice is made once, at capture, so it may not depend on what is in a batch. A table of
tuned settings for the GPU at hand (`kernels/settings/GPU_NAME.json`) wins over the heuristic below, which
rests on the model of KERNELS.md sections 4 and 5 and on no measurement.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kernels.batch import TILE_HEIGHTS, tile_bound

Route = Literal["split", "single", "fused"]
"""split: two launches, K shared by several programs. single: one launch, x·Aᵀ computed again for each block
of columns. fused: one launch, a program owns a tile of rows. Names of the paths A, B and C of KERNELS.md."""

ONE_LAUNCH_MAX_RANK = 64
"""Above it x·Aᵀ of a tile does not fit the registers, and only `split` rounds once."""

SETTINGS_FOLDER = Path(__file__).parent / "settings"

H200_MULTIPROCESSORS = 132


@dataclass(frozen=True, slots=True)
class Shape:
    """One LoRA linear as the host knows it: `tokens` rows (padded, under a graph) of `columns` (K) inputs,
    one output width per slice, `max_rank` (R) as allocated. True ranks are on the device and may change."""

    tokens: int
    columns: int
    widths: tuple[int, ...]
    max_rank: int
    max_loras: int

    @property
    def flat_rank(self) -> int:
        """Columns of x·Aᵀ for all slices."""
        return len(self.widths) * self.max_rank

    def column_tiles(self, block_n: int) -> int:
        """Blocks of output columns; slices are cut one by one."""
        return sum(-(-width // block_n) for width in self.widths)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a launch that may be tuned. Any setting of any field gives the same sums."""

    route: Route
    block_m: int = 16
    """Rows of a tile, one of `TILE_HEIGHTS`."""
    block_k: int = 128
    """Columns of x per step."""
    block_n: int = 128
    """Columns of y per step."""
    rank_tile: int = 64
    """Most columns of x·Aᵀ that a program holds at once (split only), a power of two from 16 to 256."""
    parts: int = 16
    """Most programs that share a tile: over K (split) or over the output's columns (fused)."""
    programs: int = 2 * H200_MULTIPROCESSORS
    """Programs of the launch (split: of the shrink launch, more where there are more tiles)."""
    warps: int = 4
    stages: int = 3
    """Depth of the load pipeline of the K loop."""
    expand_programs: int = 8 * H200_MULTIPROCESSORS
    expand_warps: int = 4
    one_row: bool = False
    """Tiles of a single row compute x·Aᵀ without matrix instructions, up to 32 ranks."""
    pdl: bool = False
    """Programmatic dependent launch (split only): expand loads weights during shrink. Off until measured."""

    def __post_init__(self) -> None:
        if self.route not in get_args(Route):
            raise ValueError(f"route is {self.route!r}, not one of {', '.join(get_args(Route))}")
        if self.block_m not in TILE_HEIGHTS:
            raise ValueError(f"block_m is {self.block_m}, not one of {TILE_HEIGHTS}")
        for name in ("block_k", "block_n", "rank_tile", "warps", "expand_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} is {value}, not a power of two")
        if not 16 <= self.rank_tile <= 256:
            raise ValueError(f"rank_tile is {self.rank_tile}, not in 16 to 256")
        if min(self.block_k, self.block_n) < 16:
            raise ValueError("block_k and block_n are at least 16, what a matrix instruction takes")


def select(shape: Shape, device: torch.device) -> Settings:
    """The tuned settings for this GPU where there are some, else the heuristic."""
    if device.type != "cuda":
        return heuristic(shape, H200_MULTIPROCESSORS)
    name, multiprocessors = _gpu(device)
    return tuned(shape, name) or heuristic(shape, multiprocessors)


@cache
def heuristic(shape: Shape, multiprocessors: int) -> Settings:
    """Settings without measurement. See the comments for what each bound follows from."""
    programs = 2 * multiprocessors
    # Else loads go by the element, with a register for each: the kernels that hold more would spill.
    aligned = all(size % 16 == 0 for size in (shape.columns, *shape.widths))
    narrow = _power_of_two(min(shape.flat_rank, 64), least=16)
    if shape.max_rank <= ONE_LAUNCH_MAX_RANK and aligned:
        # A slice of A read by each program from L2 at about 100 B/ns: 128 KiB is the price of a launch.
        work_items = tile_bound(shape.tokens, shape.max_loras, 16) * shape.column_tiles(128)
        if 2 * shape.max_rank * shape.columns <= 128 * 1024 and work_items <= programs:
            return Settings("single", block_k=256, programs=programs, one_row=True)
        # Enough tiles of 64 rows to keep all multiprocessors busy with few parts, x read once.
        if shape.tokens >= 32 * multiprocessors:
            return Settings("fused", block_m=64, block_k=64, block_n=64, parts=4, programs=programs)
    if shape.tokens > 256:
        wide = _power_of_two(min(shape.flat_rank, 128), least=16)
        return Settings(
            "split",
            block_m=64,
            block_k=64 if aligned else 32,
            block_n=64 if aligned else 32,
            rank_tile=wide,
            parts=8,
            programs=programs,
            warps=8 if wide == 128 else 4,
            expand_programs=2 * programs,
        )
    # Decode. One step of A is at most 16 KiB, so that three stages of it leave room for several programs on a
    # multiprocessor.
    return Settings(
        "split",
        block_k=128 if aligned else 32,
        block_n=128 if aligned else 32,
        rank_tile=narrow,
        programs=programs,
        expand_programs=8 * multiprocessors,
        one_row=True,
    )


def tuned(shape: Shape, gpu: str) -> Settings | None:
    """The table's settings for this layer at the least tabulated `tokens` ≥ the shape's, if there is such a
    line. Layers match by slices, columns, width and max_rank; of those alike, the nearest max_loras wins."""
    lines = [
        line
        for line in _table(table_path(gpu))
        if line["slices"] == len(shape.widths)
        and line["columns"] == shape.columns
        and line["width"] == sum(shape.widths)
        and line["max_rank"] == shape.max_rank
        and line["tokens"] >= shape.tokens
    ]
    if not lines:
        return None
    best = min(lines, key=lambda line: (line["tokens"], abs(line["max_loras"] - shape.max_loras)))
    return Settings(**best["settings"])


def search_space(shape: Shape, multiprocessors: int) -> tuple[Settings, ...]:
    """What a tuner may try for this shape, the heuristic's choice first.

    Combinations that spill registers (`kernels.compile_check` goes through all of it) are left out.
    """
    found = [heuristic(shape, multiprocessors)]
    if shape.max_rank <= ONE_LAUNCH_MAX_RANK and shape.tokens <= 16:
        found += [
            Settings(
                "single", block_k=block_k, block_n=block_n, one_row=one_row, programs=4 * multiprocessors
            )
            for block_k, block_n, one_row in product((128, 256), (64, 128, 256), (False, True))
            if block_k == 128 or shape.max_rank <= 32
        ]
    found += (_split_decode if shape.tokens <= 512 else _prefill)(shape, multiprocessors)
    return tuple(dict.fromkeys(found))


def _split_decode(shape: Shape, multiprocessors: int) -> Iterator[Settings]:
    grids = ((8, 1), (16, 2), (16, 4))
    loops = ((False, 3), (False, 4), (True, 3))  # a fourth stage beside the one-row loop spills
    for block_k, block_n, (parts, per_processor), (one_row, stages), pdl in product(
        (64, 128), (64, 128, 256), grids, loops, (False, True)
    ):
        yield Settings(
            "split",
            block_k=block_k,
            block_n=block_n,
            rank_tile=_power_of_two(min(shape.flat_rank, 64), least=16),
            parts=parts,
            programs=per_processor * multiprocessors,
            stages=stages,
            expand_programs=8 * multiprocessors,
            expand_warps=8 if block_n == 256 else 4,
            one_row=one_row,
            pdl=pdl,
        )


def _prefill(shape: Shape, multiprocessors: int) -> Iterator[Settings]:
    heights = ((64, 4), (128, 8))
    for (block_m, warps), block_n, per_processor in product(heights, (64, 128), (2, 4)):
        programs = per_processor * multiprocessors
        for parts, rank_tile in product((1, 8), (64, 128) if block_m == 64 else (64,)):
            yield Settings(
                "split",
                block_m=block_m,
                block_k=64,
                block_n=block_n,
                rank_tile=_power_of_two(min(shape.flat_rank, rank_tile), least=16),
                parts=parts,
                programs=programs,
                warps=8,
                expand_programs=2 * programs,
                expand_warps=warps,
            )
        # Three slices of 64 ranks and 128 columns of y do not fit the registers together.
        if shape.max_rank <= (ONE_LAUNCH_MAX_RANK if block_n == 64 else 32):
            for parts in (1, 2, 4):
                yield Settings(
                    "fused",
                    block_m=block_m,
                    block_k=64,
                    block_n=block_n,
                    parts=parts,
                    programs=programs,
                    warps=warps,
                )


def table_path(gpu: str) -> Path:
    """`NVIDIA H200` has its table in `kernels/settings/NVIDIA_H200.json`."""
    return SETTINGS_FOLDER / f"{re.sub(r'[^A-Za-z0-9]+', '_', gpu)}.json"


def table_line(shape: Shape, settings: Settings) -> dict[str, Any]:
    """One line of a table, `{"lines": [...]}`, as `tuned` reads it."""
    return {
        "slices": len(shape.widths),
        "columns": shape.columns,
        "width": sum(shape.widths),
        "max_rank": shape.max_rank,
        "max_loras": shape.max_loras,
        "tokens": shape.tokens,
        "settings": asdict(settings),
    }


@cache
def _table(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["lines"]
    return lines


@cache
def _gpu(device: torch.device) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count


def _power_of_two(least_value: int, *, least: int) -> int:
    return max(1 << (least_value - 1).bit_length(), least)
