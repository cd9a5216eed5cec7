# Device code: Triton gives arguments their types, constants are upper case, and an `if` on a constant is
# taken at compile time, so it stays apart from one on a value. Tuples only grow by addition.
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, RUF005, SIM102
# mypy: ignore-errors
"""Prefill: a program owns a tile of rows, reads x once for all slices, and x·Aᵀ never leaves the chip."""

from __future__ import annotations

import triton
import triton.language as tl

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
    write_sum,
)


@triton.jit
def _shrink_slices(
    slot,
    x_rows,
    exists,
    a_ptrs,
    ranks_ptr,
    max_loras,
    columns,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """x·Aᵀ of every slice in one pass over x: a tuple of fp32 `[BLOCK_M, RANKS]`, zero beyond a rank."""
    r = tl.arange(0, RANKS)
    k = tl.arange(0, BLOCK_K)
    h = ()
    used = ()
    for s in tl.static_range(NUM_SLICES):
        h = h + (tl.zeros([x_rows.shape[0], RANKS], tl.float32),)
        used = used + (r < tl.load(ranks_ptr + s * max_loras + slot),)
    for k_start in range(0, columns, BLOCK_K):
        x_mask = exists[:, None]
        if not EVEN_K:
            x_mask = x_mask & (k_start + k < columns)[None, :]
        x = tl.load(x_rows[:, None] + (k_start + k)[None, :], mask=x_mask, other=0.0)
        x = operand(x, x.dtype, UPCAST)
        longer = ()
        for s in tl.static_range(NUM_SLICES):
            a_mask = used[s][:, None]
            if not EVEN_K:
                a_mask = a_mask & (k_start + k < columns)[None, :]
            a_rows = a_ptrs[s] + (slot * MAX_RANK + r) * columns
            a = tl.load(a_rows[:, None] + (k_start + k)[None, :], mask=a_mask, other=0.0)
            a = operand(a, a.dtype, UPCAST)
            longer = longer + (tl.dot(x, tl.trans(a), h[s], input_precision="ieee"),)
        h = longer
    return h


@triton.jit
def _expand_slice(
    h,
    rank,
    part,
    parts,
    row_ids,
    exists,
    y_ptr,
    b_ptr,
    width,
    y_row_stride,
    MAX_RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Every `parts`-th block of one slice's columns; the pointers are at the slice's start."""
    dtype: tl.constexpr = b_ptr.dtype.element_ty
    h_operand = operand(h, dtype, UPCAST)
    n = tl.arange(0, BLOCK_N)
    for column in range(part * BLOCK_N, width, parts * BLOCK_N):
        in_width = column + n < width
        b = read_b(b_ptr + (column + n) * MAX_RANK, in_width, 0, rank, h.shape[1], MAX_RANK)
        y_ptrs = y_ptr + row_ids[:, None] * y_row_stride + (column + n)[None, :]
        mask = exists[:, None] & in_width[None, :]
        y = read_y(y_ptrs, mask, ADD_INPUTS)
        product = tl.dot(h_operand, tl.trans(operand(b, dtype, UPCAST)), input_precision="ieee")
        write_sum(y_ptrs, mask, y, product)


@triton.jit
def _fused_ranks(
    part,
    parts,
    slot,
    row_ids,
    exists,
    y_ptr,
    x_ptr,
    a_ptrs,
    b_ptrs,
    widths,
    ranks_ptr,
    max_loras,
    columns,
    x_row_stride,
    y_row_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    h = _shrink_slices(
        slot, x_ptr + row_ids * x_row_stride, exists, a_ptrs, ranks_ptr, max_loras, columns, NUM_SLICES,
        MAX_RANK, RANKS, BLOCK_K, EVEN_K, UPCAST,
    )  # fmt: skip
    y_column = 0
    for s in tl.static_range(NUM_SLICES):
        rank = tl.load(ranks_ptr + s * max_loras + slot)
        if rank > 0:
            _expand_slice(
                h[s], rank, part, parts, row_ids, exists, y_ptr + y_column,
                b_ptrs[s] + slot * widths[s] * MAX_RANK, widths[s], y_row_stride, MAX_RANK, BLOCK_N,
                ADD_INPUTS, UPCAST,
            )  # fmt: skip
        y_column += widths[s]


@triton.jit(do_not_specialize=["max_loras", "column_tiles"])
def fused_kernel(
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
    MAX_PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    ADD_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[row] += (x[row]·Aᵀ)·Bᵀ, rounded once; one block of RANK_TILE holds any rank.

    When tiles are fewer than programs, up to MAX_PARTS programs share a tile's output columns; each computes
    its x·Aᵀ again.
    """
    num_tiles = tl.load(tile_count_ptr)
    parts = parts_of(num_tiles, tl.num_programs(0), column_tiles, MAX_PARTS)
    for item in tl.range(tl.program_id(0), num_tiles * parts, tl.num_programs(0), num_stages=1):
        # Parts of a tile are neighbours: the second reads x and A from L2.
        slot, start, rows = read_tile(tiles_ptr, item // parts)
        row_ids, exists = read_rows(row_ids_ptr, start, rows, BLOCK_M)
        rank = 0
        for s in tl.static_range(NUM_SLICES):
            rank = tl.maximum(rank, tl.load(ranks_ptr + s * max_loras + slot))
        for log in tl.static_range(MIN_LOG_RANKS, END_LOG_RANKS):
            if 1 << log <= RANK_TILE:
                if is_narrowest(rank, 1 << log, RANK_TILE):
                    _fused_ranks(
                        item % parts, parts, slot, row_ids, exists, y_ptr, x_ptr, a_ptrs, b_ptrs, widths,
                        ranks_ptr, max_loras, columns, x_row_stride, y_row_stride, NUM_SLICES, MAX_RANK,
                        1 << log, BLOCK_K, BLOCK_N, EVEN_K, ADD_INPUTS, UPCAST,
                    )  # fmt: skip
