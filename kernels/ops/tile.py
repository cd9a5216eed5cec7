# Device code: Triton gives arguments their types, and constants are upper case.
# ruff: noqa: ANN001, ANN201, N803, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Device functions that the kernels share: a tile of rows, its weights, the product over K.

Slices are separate allocations and of unequal width, so kernels take a tuple of pointers. Each is a kernel
argument of its own: nothing to look up before the first load, its alignment is known to the compiler, and a
captured graph holds it as it holds every other argument.
"""

from __future__ import annotations

import triton
import triton.language as tl

MIN_LOG_RANKS = tl.constexpr(4)
"""Ranks come in blocks of 2⁴ = 16 (the K of a bf16 matrix instruction), 32, 64, 128 …"""

END_LOG_RANKS = tl.constexpr(9)
"""… and 256."""

MAX_ONE_ROW_RANKS = tl.constexpr(32)
"""More ranks than this do not fit the registers of `project_one_row`."""


@triton.jit
def read_tile(tiles_ptr, index):
    """(slot, first position, rows) of a tile; see `LoraBatch.tiles`. The slot is int64: it is an offset."""
    record = tiles_ptr + index * 4
    return tl.load(record).to(tl.int64), tl.load(record + 1), tl.load(record + 2)


@triton.jit
def read_rows(row_ids_ptr, start, rows, BLOCK_M: tl.constexpr):
    """Row numbers (int64 `[BLOCK_M]`) of a tile and which of them exist."""
    m = tl.arange(0, BLOCK_M)
    exists = m < rows
    return tl.load(row_ids_ptr + start + m, mask=exists, other=0).to(tl.int64), exists


@triton.jit
def parts_of(num_tiles, programs, steps, MAX_PARTS: tl.constexpr):
    """How many programs share a tile: as many as the grid has to spare, at most one per step of work.

    The grid is fixed at capture for the most tiles that a batch can have; a batch with fewer uses the same
    programs on finer parts. A function of numbers that the batch and the launch fix, so a rerun adds up in
    the same order, and the expand kernel can work out what the shrink kernel did.
    """
    spare = tl.maximum(programs // tl.maximum(num_tiles, 1), 1)
    return tl.minimum(tl.minimum(spare, MAX_PARTS), steps)


@triton.jit
def is_narrowest(rank, RANKS: tl.constexpr, WIDEST: tl.constexpr):
    """Whether RANKS is the least of 16, 32, … WIDEST that holds `rank` > 0, or is WIDEST and nothing does.

    Kernels have a version of their body for each and choose by true rank: rank 8 under MAX_RANK 64 pays for
    16 columns of a matrix instruction, not for 64, and rank 0 for none.
    """
    above_narrower = rank > (0 if RANKS == 16 else RANKS // 2)
    if RANKS == WIDEST:
        return above_narrower
    return above_narrower & (rank <= RANKS)


@triton.jit
def operand(values, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """`values` rounded to the weights' dtype for a matrix instruction. Triton's interpreter multiplies bf16
    wrongly (KERNELS.md section 8); UPCAST gives it the same numbers as fp32."""
    values = values.to(dtype)
    if UPCAST:
        values = values.to(tl.float32)
    return values


@triton.jit
def project(
    x_rows,
    exists,
    a_rows,
    used,
    first,
    step,
    columns,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """x·Aᵀ over the K blocks `first`, `first + step`, …: fp32 `[len(x_rows), len(a_rows)]`.

    `x_rows`, `a_rows` point at the rows' first elements. Rows that do not exist, and columns whose
    row of A is not `used`, are exact zeros and cost no bytes.
    """
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([x_rows.shape[0], a_rows.shape[0]], tl.float32)
    for k_start in range(first, columns, step):
        x_mask = exists[:, None]
        a_mask = used[:, None]
        if not EVEN_K:
            x_mask = x_mask & (k_start + k < columns)[None, :]
            a_mask = a_mask & (k_start + k < columns)[None, :]
        x = tl.load(x_rows[:, None] + (k_start + k)[None, :], mask=x_mask, other=0.0)
        a = tl.load(a_rows[:, None] + (k_start + k)[None, :], mask=a_mask, other=0.0)
        x = operand(x, x.dtype, UPCAST)
        a = operand(a, a.dtype, UPCAST)
        total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
    return total


@triton.jit
def project_one_row(
    x_row,
    a_rows,
    used,
    first,
    step,
    columns,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """`project` for a single row, without matrix instructions: fp32 `[len(a_rows)]`.

    A goes straight to registers, and threads meet once, at the end.
    """
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([a_rows.shape[0], BLOCK_K], tl.float32)
    for k_start in range(first, columns, step):
        a_mask = used[:, None]
        if EVEN_K:
            x = tl.load(x_row + k_start + k)
        else:
            x = tl.load(x_row + k_start + k, mask=k_start + k < columns, other=0.0)
            a_mask = a_mask & (k_start + k < columns)[None, :]
        a = tl.load(a_rows[:, None] + (k_start + k)[None, :], mask=a_mask, other=0.0)
        total += a.to(tl.float32) * x.to(tl.float32)[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def slice_at(column_tile, b_ptrs, widths, BLOCK_N: tl.constexpr, NUM_SLICES: tl.constexpr):
    """The slice that a column tile of the flattened output lies in.

    Returns its number, its B pointer, its width, its first column in y and the first of the tile's columns
    counted from there. Slices are cut one by one, so no tile has columns of two.
    """
    index = 0
    b_ptr = b_ptrs[0]
    width = widths[0]
    y_column = 0
    tile_in_slice = column_tile
    first_tile = 0
    first_column = 0
    for s in tl.static_range(NUM_SLICES):
        here = column_tile >= first_tile
        index = tl.where(here, s, index)
        b_ptr = tl.where(here, b_ptrs[s], b_ptr)
        width = tl.where(here, widths[s], width)
        y_column = tl.where(here, first_column, y_column)
        tile_in_slice = tl.where(here, column_tile - first_tile, tile_in_slice)
        first_tile += tl.cdiv(widths[s], BLOCK_N)
        first_column += widths[s]
    return index, b_ptr, width, y_column, tile_in_slice * BLOCK_N


@triton.jit
def whole_groups(rank, MAX_RANK: tl.constexpr):
    """`rank`, rounded up to 8 where rows have that many: a mask that keeps loads as wide as they can be."""
    if MAX_RANK % 8 == 0:
        return (rank + 7) // 8 * 8
    return rank


@triton.jit
def read_b(b_rows, in_width, first_rank, rank, RANKS: tl.constexpr, MAX_RANK: tl.constexpr):
    """B's columns [first_rank, first_rank + RANKS) of some rows: `[len(b_rows), RANKS]`.

    Reads whole groups of 8, to keep the loads 16 bytes wide for any rank: up to 7 entries past `rank`. They
    meet exact zeros of x·Aᵀ, and a slot is zero there (KERNELS.md section 3.3), so they only need be finite.
    """
    r = first_rank + tl.arange(0, RANKS)
    loaded = r < whole_groups(rank, MAX_RANK)
    return tl.load(b_rows[:, None] + r[None, :], mask=in_width[:, None] & loaded[None, :], other=0.0)


@triton.jit
def read_y(y_ptrs, mask, ADD_INPUTS: tl.constexpr):
    """What to add to: y itself, or zeros. Called before the product, so that the load is under way then."""
    if ADD_INPUTS:
        return tl.load(y_ptrs, mask=mask, other=0.0)
    return tl.zeros(y_ptrs.shape, y_ptrs.dtype.element_ty)


@triton.jit
def write_sum(y_ptrs, mask, y, product):
    """y + product: added in fp32, rounded once."""
    tl.store(y_ptrs, (y.to(tl.float32) + product).to(y.dtype), mask=mask)
