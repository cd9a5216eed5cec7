# Device code: Triton gives arguments their types, constants are upper case, and an `if` on a constant is
# taken at compile time, so it stays apart from one on a value.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806, PLR0917, SIM102
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""y += h·Bᵀ per tile and block of output columns; h is the shrink kernel's planes, summed in order."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from kernels.ops.tile import (
    END_LOG_RANKS,
    MIN_LOG_RANKS,
    is_narrowest,
    operand,
    parts_of,
    read_b,
    read_rows,
    read_tile,
    read_y,
    slice_at,
    whole_groups,
    write_sum,
)

PLANE_ELEMENTS = tl.constexpr(2048)
"""Elements of h that one program loads at a time, 16 for each of 128 threads."""


@triton.jit
def _sum_planes(
    h_rows,
    exists,
    first_rank,
    rank,
    parts,
    h_plane_stride,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Ranks [first_rank, first_rank + RANKS) of h, plane after plane: fp32, exact zeros beyond `rank`.

    As many planes are in flight as registers allow. Loads are whole groups of 8, as in `read_b`: what lies
    beyond `rank` was never written and is dropped after the sum.
    """
    r = first_rank + tl.arange(0, RANKS)
    h_ptrs = h_rows[:, None] + r[None, :]
    loaded = whole_groups(rank, MAX_RANK)
    ELEMENTS: tl.constexpr = h_rows.shape[0] * RANKS
    IN_FLIGHT: tl.constexpr = PLANE_ELEMENTS // ELEMENTS if PLANE_ELEMENTS > ELEMENTS else 1
    h = tl.zeros([h_rows.shape[0], RANKS], tl.float32)
    for first_plane in tl.range(0, parts, IN_FLIGHT, num_stages=1):
        for i in tl.static_range(IN_FLIGHT):
            plane = first_plane + i
            mask = exists[:, None] & (r < tl.where(plane < parts, loaded, 0))[None, :]
            h += tl.load(h_ptrs + plane * h_plane_stride, mask=mask, other=0.0)
    return tl.where((r < rank)[None, :], h, 0.0)


@triton.jit
def _expand_ranks(
    rank,
    parts,
    exists,
    y_ptrs,
    h_rows,
    b_rows,
    in_width,
    h_plane_stride,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    dtype: tl.constexpr = b_rows.dtype.element_ty
    mask = exists[:, None] & in_width[None, :]
    b = read_b(b_rows, in_width, 0, rank, RANKS, MAX_RANK)
    y = read_y(y_ptrs, mask, ADD_INPUTS)
    if USE_PDL:
        gdc_wait()
    h = _sum_planes(h_rows, exists, 0, rank, parts, h_plane_stride, MAX_RANK, RANKS)
    product = tl.dot(operand(h, dtype, UPCAST), tl.trans(operand(b, dtype, UPCAST)), input_precision="ieee")
    for first_rank in tl.range(RANKS, rank, RANKS, num_stages=1):
        b = read_b(b_rows, in_width, first_rank, rank, RANKS, MAX_RANK)
        h = _sum_planes(h_rows, exists, first_rank, rank, parts, h_plane_stride, MAX_RANK, RANKS)
        product = tl.dot(
            operand(h, dtype, UPCAST), tl.trans(operand(b, dtype, UPCAST)), product, input_precision="ieee"
        )
    write_sum(y_ptrs, mask, y, product)


@triton.jit(do_not_specialize=["max_loras", "shrink_programs", "shrink_steps", "column_tiles"])
def expand_kernel(
    y_ptr,
    h_ptr,
    b_ptrs,
    widths,
    ranks_ptr,
    tiles_ptr,
    tile_count_ptr,
    row_ids_ptr,
    max_loras,
    shrink_programs,
    shrink_steps,
    first_y_column,
    column_tiles,
    y_row_stride,
    h_plane_stride,
    h_slice_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RANK_TILE: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """y[row, slice's columns] += (Σ planes of h[:, slice, row, :r])·B[slice, slot]ᵀ, rounded once.

    `shrink_programs` and `shrink_steps` are the grid and the K blocks of the shrink launch: they give the
    number of planes. Both 1 for an `h` of a single plane.
    """
    if MAX_RANK % 8 == 0:  # both are multiples of MAX_RANK, which the compiler cannot know
        h_plane_stride = tl.multiple_of(h_plane_stride, 8)
        h_slice_stride = tl.multiple_of(h_slice_stride, 8)
    num_tiles = tl.load(tile_count_ptr)
    parts = parts_of(num_tiles, shrink_programs, shrink_steps, MAX_PARTS)
    n = tl.arange(0, BLOCK_N)
    for item in tl.range(tl.program_id(0), num_tiles * column_tiles, tl.num_programs(0), num_stages=1):
        slot, start, rows = read_tile(tiles_ptr, item // column_tiles)
        row_ids, exists = read_rows(row_ids_ptr, start, rows, BLOCK_M)
        index, b_ptr, width, y_column, column = slice_at(
            item % column_tiles, b_ptrs, widths, BLOCK_N, NUM_SLICES
        )
        rank = tl.load(ranks_ptr + index * max_loras + slot)
        in_width = column + n < width
        b_rows = b_ptr + (slot * width + column + n) * MAX_RANK
        h_rows = h_ptr + index * h_slice_stride + row_ids * MAX_RANK
        y_ptrs = y_ptr + row_ids[:, None] * y_row_stride + (first_y_column + y_column + column + n)[None, :]
        for log in tl.static_range(MIN_LOG_RANKS, END_LOG_RANKS):
            if 1 << log <= RANK_TILE:
                if is_narrowest(rank, 1 << log, RANK_TILE):
                    _expand_ranks(
                        rank, parts, exists, y_ptrs, h_rows, b_rows, in_width, h_plane_stride, MAX_RANK,
                        1 << log, ADD_INPUTS, UPCAST, USE_PDL,
                    )  # fmt: skip
    if USE_PDL:
        # Also without work: what follows this kernel must not overtake the shrink kernel.
        gdc_wait()
