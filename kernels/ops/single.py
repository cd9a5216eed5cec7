# Device code: Triton gives arguments their types, constants are upper case, and an `if` on a constant is
# taken at compile time, so it stays apart from one on a value.
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, SIM102
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The whole product in one launch for the smallest decode batches, where a second launch costs more than
computing x·Aᵀ again for each block of output columns (A then comes from L2)."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.ops.tile import (
    END_LOG_RANKS,
    MAX_ONE_ROW_RANKS,
    MIN_LOG_RANKS,
    is_narrowest,
    operand,
    project,
    project_one_row,
    read_b,
    read_rows,
    read_tile,
    read_y,
    slice_at,
    write_sum,
)


@triton.jit
def _single_ranks(
    rank,
    row_ids,
    exists,
    rows,
    x_ptr,
    y_ptrs,
    a_slot,
    b_rows,
    in_width,
    columns,
    x_row_stride,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    ONE_ROW: tl.constexpr,
    UPCAST: tl.constexpr,
):
    dtype: tl.constexpr = b_rows.dtype.element_ty
    r = tl.arange(0, RANKS)
    a_rows = a_slot + r * columns
    used = r < rank
    mask = exists[:, None] & in_width[None, :]
    b = read_b(b_rows, in_width, 0, rank, RANKS, MAX_RANK)
    y = read_y(y_ptrs, mask, ADD_INPUTS)
    if ONE_ROW and RANKS <= MAX_ONE_ROW_RANKS and rows == 1:
        x_row = x_ptr + tl.sum(row_ids, axis=0) * x_row_stride  # those that do not exist are 0
        h_row = project_one_row(x_row, a_rows, used, 0, BLOCK_K, columns, BLOCK_K, EVEN_K)
        h = tl.where((tl.arange(0, BLOCK_M) == 0)[:, None], h_row[None, :], 0.0)
    else:
        x_rows = x_ptr + row_ids * x_row_stride
        h = project(x_rows, exists, a_rows, used, 0, BLOCK_K, columns, BLOCK_K, EVEN_K, UPCAST)
    product = tl.dot(operand(h, dtype, UPCAST), tl.trans(operand(b, dtype, UPCAST)), input_precision="ieee")
    write_sum(y_ptrs, mask, y, product)


@triton.jit(do_not_specialize=["max_loras", "column_tiles"])
def single_kernel(
    y_ptr,
    x_ptr,
    a_ptrs,
    b_ptrs,
    widths,
    ranks_ptr,
    tiles_ptr,
    tile_count_ptr,
    row_ids_ptr,
    max_loras,
    columns,
    column_tiles,
    x_row_stride,
    y_row_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    RANK_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    ONE_ROW: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[row, slice's columns] += (x[row]·A[slice, slot]ᵀ)·B[slice, slot]ᵀ, rounded once.

    One block of RANK_TILE holds any rank.
    """
    num_tiles = tl.load(tile_count_ptr)
    n = tl.arange(0, BLOCK_N)
    for item in tl.range(tl.program_id(0), num_tiles * column_tiles, tl.num_programs(0), num_stages=1):
        slot, start, rows = read_tile(tiles_ptr, item // column_tiles)
        row_ids, exists = read_rows(row_ids_ptr, start, rows, BLOCK_M)
        index, b_ptr, width, y_column, column = slice_at(
            item % column_tiles, b_ptrs, widths, BLOCK_N, NUM_SLICES
        )
        a_ptr = a_ptrs[0]
        for s in tl.static_range(1, NUM_SLICES):
            a_ptr = tl.where(index == s, a_ptrs[s], a_ptr)
        rank = tl.load(ranks_ptr + index * max_loras + slot)
        in_width = column + n < width
        b_rows = b_ptr + (slot * width + column + n) * MAX_RANK
        y_ptrs = y_ptr + row_ids[:, None] * y_row_stride + (y_column + column + n)[None, :]
        for log in tl.static_range(MIN_LOG_RANKS, END_LOG_RANKS):
            if 1 << log <= RANK_TILE:
                if is_narrowest(rank, 1 << log, RANK_TILE):
                    _single_ranks(
                        rank, row_ids, exists, rows, x_ptr, y_ptrs, a_ptr + slot * MAX_RANK * columns, b_rows,
                        in_width, columns, x_row_stride, MAX_RANK, 1 << log, BLOCK_M, BLOCK_K, EVEN_K,
                        ADD_INPUTS, ONE_ROW, UPCAST,
                    )  # fmt: skip
