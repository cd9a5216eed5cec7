# ruff: noqa: PLR0917 - operands come first and in one order everywhere

"""A kernel with everything its launch needs, as a value: run on a GPU, or compiled without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.batch import LoraBatch, tile_bound
from kernels.ops.expand import expand_kernel
from kernels.ops.fused import fused_kernel
from kernels.ops.shrink import shrink_kernel
from kernels.ops.single import single_kernel
from kernels.selection import Settings, Shape

VECTOR_BYTES = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """`arguments` by the kernel's own names; the grid is one-dimensional."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int
    stages: int
    pdl: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For Triton's compiler. Fused multiply-add by name: what Triton does unasked changes with 3.10."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return options | ({"launch_pdl": True} if self.pdl else {})

    def run(self) -> None:
        self.kernel[(self.programs,)](**self.arguments, **self.options)


def shrink_steps(columns: int, settings: Settings) -> int:
    """Blocks of K: no more programs than this can share a tile."""
    return -(-columns // settings.block_k)


def shrink_programs(tokens: int, max_loras: int, settings: Settings) -> int:
    """Grid of the shrink launch: covers the most tiles that a batch can have."""
    return max(tile_bound(tokens, max_loras, settings.block_m), settings.programs)


def shrink(
    h: Tensor, x: Tensor, a: Sequence[Tensor], ranks: Tensor, batch: LoraBatch, settings: Settings
) -> Launch:
    """h[p, s, t, :r] = part p of x[t]·A[s, slot]ᵀ, with h fp32 `[planes, S, T, R]`."""
    columns = x.shape[1]
    return Launch(
        shrink_kernel,
        shrink_programs(x.shape[0], batch.max_loras, settings),
        {
            **_weights_and_tiles(batch, ranks, settings),
            "x_ptr": x,
            "a_ptrs": tuple(a),
            "h_ptr": h,
            "columns": columns,
            "x_row_stride": x.stride(0),
            "h_plane_stride": h.stride(0),
            "h_slice_stride": h.stride(1),
            "NUM_SLICES": len(a),
            "MAX_RANK": a[0].shape[2],
            "BLOCK_K": settings.block_k,
            "RANK_TILE": settings.rank_tile,
            "MAX_PARTS": h.shape[0],
            "EVEN_K": columns % settings.block_k == 0,
            "ALIGNED": _rows_are_aligned(a),
            "ONE_ROW": settings.one_row,
            "UPCAST": must_upcast(x),
            "USE_PDL": settings.pdl,
        },
        settings.warps,
        settings.stages,
        pdl=False,
    )


def expand(
    y: Tensor,
    h: Tensor,
    b: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings,
    *,
    shrink_grid: tuple[int, int] = (1, 1),
    first_y_column: int = 0,
    add_inputs: bool = True,
) -> Launch:
    """y[t] += Σₚ h[p, s, t, :r]·B[s, slot]ᵀ. `shrink_grid`: programs and K blocks of h's launch."""
    shape = Shape(y.shape[0], 0, tuple(each.shape[2] for each in b), b[0].shape[3], batch.max_loras)
    column_tiles = shape.column_tiles(settings.block_n)
    work_items = tile_bound(shape.tokens, shape.max_loras, settings.block_m) * column_tiles
    return Launch(
        expand_kernel,
        min(work_items, settings.expand_programs),
        {
            **_weights_and_tiles(batch, ranks, settings),
            "y_ptr": y,
            "h_ptr": h,
            "b_ptrs": tuple(b),
            "widths": shape.widths,
            "shrink_programs": shrink_grid[0],
            "shrink_steps": shrink_grid[1],
            "first_y_column": first_y_column,
            "column_tiles": column_tiles,
            "y_row_stride": y.stride(0),
            "h_plane_stride": h.stride(0),
            "h_slice_stride": h.stride(1),
            "NUM_SLICES": len(b),
            "MAX_RANK": shape.max_rank,
            "BLOCK_N": settings.block_n,
            "RANK_TILE": min(settings.rank_tile, 64),
            "MAX_PARTS": h.shape[0],
            "ADD_INPUTS": add_inputs,
            "UPCAST": must_upcast(b[0]),
            "USE_PDL": settings.pdl,
        },
        settings.expand_warps,
        settings.stages,
        pdl=settings.pdl,
    )


def one_launch(
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings,
    *,
    add_inputs: bool = True,
) -> Launch:
    """y[t] += x[t]·A[s, slot]ᵀ·B[s, slot]ᵀ by the `single` or the `fused` kernel."""
    columns = x.shape[1]
    shape = Shape(y.shape[0], columns, tuple(each.shape[2] for each in b), b[0].shape[3], batch.max_loras)
    column_tiles = shape.column_tiles(settings.block_n)
    tiles = tile_bound(shape.tokens, shape.max_loras, settings.block_m)
    arguments = {
        **_weights_and_tiles(batch, ranks, settings),
        "y_ptr": y,
        "x_ptr": x,
        "a_ptrs": tuple(a),
        "b_ptrs": tuple(b),
        "widths": shape.widths,
        "columns": columns,
        "column_tiles": column_tiles,
        "x_row_stride": x.stride(0),
        "y_row_stride": y.stride(0),
        "NUM_SLICES": len(a),
        "MAX_RANK": shape.max_rank,
        "RANK_TILE": max(16, triton.next_power_of_2(shape.max_rank)),
        "BLOCK_K": settings.block_k,
        "BLOCK_N": settings.block_n,
        "EVEN_K": columns % settings.block_k == 0,
        "ADD_INPUTS": add_inputs,
        "UPCAST": must_upcast(x),
    }
    if settings.route == "single":
        kernel, work_items = single_kernel, tiles * column_tiles
        arguments["ONE_ROW"] = settings.one_row
    else:
        kernel, work_items = fused_kernel, tiles * min(settings.parts, column_tiles)
        arguments["MAX_PARTS"] = settings.parts
    return Launch(kernel, min(work_items, settings.programs), arguments, settings.warps, settings.stages)


def must_upcast(values: Tensor) -> bool:
    """Triton's interpreter multiplies bf16 wrongly; see `kernels.ops.tile.operand`."""
    return bool(triton.knobs.runtime.interpret) and values.dtype == torch.bfloat16


def _weights_and_tiles(batch: LoraBatch, ranks: Tensor, settings: Settings) -> dict[str, Any]:
    return {
        "ranks_ptr": ranks,
        "tiles_ptr": batch.tiles(settings.block_m),
        "tile_count_ptr": batch.tile_count(settings.block_m),
        "row_ids_ptr": batch.row_ids,
        "max_loras": batch.max_loras,
        "BLOCK_M": settings.block_m,
    }


def _rows_are_aligned(weights: Sequence[Tensor]) -> bool:
    """Each row starts on a vector's boundary, so that loads can be vectors."""
    return all(
        each.data_ptr() % VECTOR_BYTES == 0 and each.stride(2) * each.element_size() % VECTOR_BYTES == 0
        for each in weights
    )
