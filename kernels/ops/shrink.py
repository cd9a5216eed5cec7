# Device code: Triton gives arguments their types, constants are upper case, and an `if` on a constant is
# taken at compile time, so it stays apart from one on a value.
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0917, SIM102
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""x·Aᵀ per tile, split over K into fp32 planes that the expand kernel sums (split-K without atomics).

Each plane is written in full by its programs, so nothing is zeroed before and no order of arrival matters.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from kernels.ops.tile import (
    END_LOG_RANKS,
    MAX_ONE_ROW_RANKS,
    MIN_LOG_RANKS,
    is_narrowest,
    parts_of,
    project,
    project_one_row,
    read_rows,
    read_tile,
)


@triton.jit
def _flat_ranks(
    flat,
    slot,
    a_ptrs,
    ranks_ptr,
    max_loras,
    columns,
    h_slice_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """All slices' ranks as one row of columns, each slice at its true rank, without gaps.

    For each of `flat`: pointer to that row of A, its offset in a row of h (a plane has less than 2³¹
    elements), and whether it exists.
    """
    a_rows = a_ptrs[0] + tl.zeros_like(flat)
    offsets = tl.zeros_like(flat)
    first = 0
    for s in tl.static_range(NUM_SLICES):
        rank = tl.load(ranks_ptr + s * max_loras + slot)
        here = (flat >= first) & (flat < first + rank)
        row = (slot * MAX_RANK + flat - first) * columns
        a_rows = tl.where(here, a_ptrs[s] + row, a_rows)
        offsets = tl.where(here, s * h_slice_stride + flat - first, offsets)
        first += rank
    if ALIGNED:  # lost in the selection above; without it loads are two bytes wide
        a_rows = tl.multiple_of(a_rows, 16)
    return a_rows, offsets, flat < first


@triton.jit
def _shrink_ranks(
    first_rank,
    part,
    parts,
    slot,
    row_ids,
    exists,
    rows,
    x_ptr,
    a_ptrs,
    h_ptr,
    ranks_ptr,
    max_loras,
    columns,
    x_row_stride,
    h_plane_stride,
    h_slice_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGNED: tl.constexpr,
    ONE_ROW: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One part of K for RANKS columns of h."""
    flat = first_rank + tl.arange(0, RANKS)
    a_rows, offsets, used = _flat_ranks(
        flat, slot, a_ptrs, ranks_ptr, max_loras, columns, h_slice_stride, NUM_SLICES, MAX_RANK, ALIGNED
    )
    h_plane = h_ptr + part.to(tl.int64) * h_plane_stride
    first = part * BLOCK_K
    step = parts * BLOCK_K
    if ONE_ROW and RANKS <= MAX_ONE_ROW_RANKS and rows == 1:
        row_id = tl.sum(row_ids, axis=0)  # those that do not exist are 0
        h_row = project_one_row(
            x_ptr + row_id * x_row_stride, a_rows, used, first, step, columns, BLOCK_K, EVEN_K
        )
        tl.store(h_plane + row_id * MAX_RANK + offsets, h_row, mask=used)
    else:
        x_rows = x_ptr + row_ids * x_row_stride
        h = project(x_rows, exists, a_rows, used, first, step, columns, BLOCK_K, EVEN_K, UPCAST)
        h_ptrs = h_plane + (row_ids.to(tl.int32)[:, None] * MAX_RANK + offsets[None, :])
        tl.store(h_ptrs, h, mask=exists[:, None] & used[None, :])


@triton.jit(do_not_specialize=["max_loras"])
def shrink_kernel(
    x_ptr,
    a_ptrs,
    h_ptr,
    ranks_ptr,
    tiles_ptr,
    tile_count_ptr,
    row_ids_ptr,
    max_loras,
    columns,
    x_row_stride,
    h_plane_stride,
    h_slice_stride,
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK_TILE: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGNED: tl.constexpr,
    ONE_ROW: tl.constexpr,
    UPCAST: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """h[part, slice, row, :r] = the part's share of x[row]·A[slice, slot]ᵀ.

    `h` is fp32 `[planes, S, T, MAX_RANK]`, rows by their number in the batch. Nothing else of it is touched.
    """
    if USE_PDL:
        # The expand kernel may start to load weights; it waits for all of this grid before it reads h.
        gdc_launch_dependents()
    if MAX_RANK % 8 == 0:  # both are multiples of MAX_RANK, which the compiler cannot know
        h_plane_stride = tl.multiple_of(h_plane_stride, 8)
        h_slice_stride = tl.multiple_of(h_slice_stride, 8)
    num_tiles = tl.load(tile_count_ptr)
    parts = parts_of(num_tiles, tl.num_programs(0), tl.cdiv(columns, BLOCK_K), MAX_PARTS)
    program = tl.program_id(0)
    if program >= num_tiles * parts:
        return
    part = program // num_tiles
    slot, start, rows = read_tile(tiles_ptr, program % num_tiles)
    row_ids, exists = read_rows(row_ids_ptr, start, rows, BLOCK_M)
    total = 0
    for s in tl.static_range(NUM_SLICES):
        total += tl.load(ranks_ptr + s * max_loras + slot)

    for log in tl.static_range(MIN_LOG_RANKS, END_LOG_RANKS):
        if 1 << log <= RANK_TILE:
            if is_narrowest(total, 1 << log, RANK_TILE):
                for first_rank in range(0, total, 1 << log):
                    _shrink_ranks(
                        first_rank, part, parts, slot, row_ids, exists, rows, x_ptr, a_ptrs, h_ptr,
                        ranks_ptr, max_loras, columns, x_row_stride, h_plane_stride, h_slice_stride,
                        NUM_SLICES, MAX_RANK, 1 << log, BLOCK_K, EVEN_K, ALIGNED, ONE_ROW, UPCAST,
                    )  # fmt: skip
