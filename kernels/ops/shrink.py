"""x·Aᵀ per tile, split over K into fp32 planes that the expand kernel sums (split-K without atomics).

Each plane is written in full by its programs, so nothing is zeroed before and no order of arrival matters.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from kernels.ops.tile import parts_of, project, project_one_row, read_rows, read_tile


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

    For each of `flat`: pointer to that row of A, its offset in a row of h, and whether it exists.
    """
    a_rows = a_ptrs[0] + tl.zeros_like(flat)
    offsets = tl.zeros_like(flat).to(tl.int64)
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
    if ONE_ROW and rows == 1:
        row_id = tl.sum(row_ids, axis=0)  # those that do not exist are 0
        h_row = project_one_row(
            x_ptr + row_id * x_row_stride, a_rows, used, first, step, columns, BLOCK_K, EVEN_K
        )
        tl.store(h_plane + row_id * MAX_RANK + offsets, h_row, mask=used)
    else:
        x_rows = x_ptr + row_ids * x_row_stride
        h = project(x_rows, exists, a_rows, used, first, step, columns, BLOCK_K, EVEN_K, UPCAST)
        h_ptrs = h_plane + row_ids[:, None] * MAX_RANK + offsets[None, :]
        tl.store(h_ptrs, h, mask=exists[:, None] & used[None, :])


@triton.jit
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
    LOG_RANK_TILE: tl.constexpr,
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

    # The narrowest of 16, 32, … that holds all ranks: rank 8 in MAX_RANK 64 pays for 16 columns, not 64.
    for log in tl.static_range(4, LOG_RANK_TILE):
        if (total <= 1 << log) & ((total > 1 << (log - 1)) | ((log == 4) & (total > 0))):
            _shrink_ranks(
                0, part, parts, slot, row_ids, exists, rows, x_ptr, a_ptrs, h_ptr, ranks_ptr, max_loras, columns,
                x_row_stride, h_plane_stride, h_slice_stride, NUM_SLICES, MAX_RANK, 1 << log, BLOCK_K, EVEN_K,
                ALIGNED, ONE_ROW, UPCAST,
            )  # fmt: skip
    if (total > RANK_TILE // 2) | (LOG_RANK_TILE == 4):
        for first_rank in range(0, total, RANK_TILE):
            _shrink_ranks(
                first_rank, part, parts, slot, row_ids, exists, rows, x_ptr, a_ptrs, h_ptr, ranks_ptr, max_loras,
                columns, x_row_stride, h_plane_stride, h_slice_stride, NUM_SLICES, MAX_RANK, RANK_TILE, BLOCK_K,
                EVEN_K, ALIGNED, ONE_ROW, UPCAST,
            )  # fmt: skip
