# ruff: noqa: PLR0917 - operands come first and in one order everywhere

"""y += x·Aᵀ·Bᵀ with one adapter per row or none: the checked entry to the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernels.batch import LoraBatch
from kernels.ops import launch
from kernels.selection import ONE_LAUNCH_MAX_RANK, Settings, Shape, select

MAX_SCRATCH_BYTES = 64 * 1024 * 1024
"""What the planes of one product may take. Long batches of wide ranks get fewer of them."""


def lora_linear(
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings | None = None,
    *,
    add_inputs: bool = True,
) -> None:
    """Adds each row's LoRA product to y, in place.

    `x` `[T, K]` and `y` `[T, ΣN_s]` of one dtype, last dimension contiguous; `a` and `b` S contiguous slices
    `[max_loras, 1, R, K]` and `[max_loras, 1, N_s, R]` of that dtype; `ranks` int32 `[S, max_loras]`.
    Entries beyond a slot's rank must be zero. Base rows and rows of rank 0 keep their bits. With
    `add_inputs=False` the product replaces y's values in rows and slices that have an adapter.

    Sums are fp32 and are rounded once; the same batch gives the same bits. Safe to capture in a CUDA graph
    for batches of up to T rows: what is launched depends on shapes only, and all buffers stay where they are.
    Raises `ValueError` for arguments that do not fit together.
    """
    shape = _checked(y, x, a, b, ranks, batch)
    settings = settings or select(shape, x.device)
    for launch_ in launches(y, x, a, b, ranks, batch, settings, add_inputs=add_inputs):
        launch_.run()


def launches(
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings,
    *,
    add_inputs: bool = True,
) -> tuple[launch.Launch, ...]:
    """What `lora_linear` runs, in this order, for arguments that it has checked."""
    widths = tuple(each.shape[2] for each in b)
    shape = Shape(x.shape[0], x.shape[1], widths, b[0].shape[3], batch.max_loras)
    if shape.tokens == 0:
        return ()
    if settings.route == "split":
        parts = planes(shape, settings)
        size = parts * shape.flat_rank * shape.tokens
        h = batch.scratch(size)[:size].view(parts, len(widths), shape.tokens, shape.max_rank)
        grid = (
            launch.shrink_programs(shape.tokens, batch.max_loras, settings),
            launch.shrink_steps(shape.columns, settings),
        )
        return (
            launch.shrink(h, x, a, ranks, batch, settings),
            launch.expand(y, h, b, ranks, batch, settings, shrink_grid=grid, add_inputs=add_inputs),
        )
    if shape.max_rank > ONE_LAUNCH_MAX_RANK:
        raise ValueError(
            f"route {settings.route} takes ranks up to {ONE_LAUNCH_MAX_RANK}, not {shape.max_rank}"
        )
    return (launch.one_launch(y, x, a, b, ranks, batch, settings, add_inputs=add_inputs),)


def lora_shrink(
    h: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings | None = None,
) -> None:
    """h[s, t, :r] = x[t]·A[s, slot]ᵀ into a caller's fp32 `[S, T, R]`; the rest of h is left as it is.

    The first half of the two-step path, for callers with a collective in between. One program per tile adds
    up all of K: several would need a sum that nobody makes.
    """
    if h.dtype != torch.float32 or h.shape != (len(a), x.shape[0], a[0].shape[2]) or not h.is_contiguous():
        raise ValueError(f"h is {h.dtype} {tuple(h.shape)}, not contiguous float32 [slices, rows, R]")
    shape = Shape(x.shape[0], x.shape[1], tuple(a[0].shape[2] for _ in a), a[0].shape[2], batch.max_loras)
    settings = replace(settings or select(shape, x.device), pdl=False)
    launch.shrink(h[None], x, a, ranks, batch, settings).run()


def lora_expand(
    y: Tensor,
    h: Tensor,
    b: Sequence[Tensor],
    ranks: Tensor,
    batch: LoraBatch,
    settings: Settings | None = None,
    *,
    first_y_column: int = 0,
    add_inputs: bool = True,
) -> None:
    """y[t, first_y_column:] += h[s, t, :r]·B[s, slot]ᵀ, in place; `h` fp32 `[S, T, R]`."""
    widths = tuple(each.shape[2] for each in b)
    shape = Shape(y.shape[0], 0, widths, b[0].shape[3], batch.max_loras)
    settings = replace(settings or select(shape, y.device), pdl=False)
    launch.expand(
        y, h[None], b, ranks, batch, settings, first_y_column=first_y_column, add_inputs=add_inputs
    ).run()


def planes(shape: Shape, settings: Settings) -> int:
    """Planes that the shrink launch may write: one per program that shares a tile, if there is room."""
    plane_bytes = 4 * shape.flat_rank * shape.tokens
    return max(
        1,
        min(
            settings.parts,
            launch.shrink_steps(shape.columns, settings),
            launch.shrink_programs(shape.tokens, shape.max_loras, settings),
            MAX_SCRATCH_BYTES // plane_bytes,
        ),
    )


def _checked(
    y: Tensor, x: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], ranks: Tensor, batch: LoraBatch
) -> Shape:
    tokens, columns = x.shape
    widths = tuple(each.shape[2] for each in b)
    max_rank = b[0].shape[3]
    if y.shape != (tokens, sum(widths)):
        raise ValueError(f"y is {tuple(y.shape)}; x and B make {(tokens, sum(widths))}")
    if x.stride(1) != 1 or y.stride(1) != 1:
        raise ValueError("rows of x and y are not contiguous")
    if batch.tokens > tokens:
        raise ValueError(f"the batch has {batch.tokens} rows, x has {tokens}")
    if ranks.dtype != torch.int32 or ranks.shape != (len(a), batch.max_loras):
        raise ValueError(f"ranks are {ranks.dtype} {tuple(ranks.shape)}, not int32 [slices, max_loras]")
    if len(a) != len(b):
        raise ValueError(f"{len(a)} slices of A, {len(b)} of B")
    for a_slice, b_slice in zip(a, b, strict=True):
        if a_slice.shape != (batch.max_loras, 1, max_rank, columns):
            raise ValueError(f"A is {tuple(a_slice.shape)}, not {(batch.max_loras, 1, max_rank, columns)}")
        if b_slice.shape[:2] != (batch.max_loras, 1) or b_slice.shape[3] != max_rank:
            raise ValueError(f"B is {tuple(b_slice.shape)}, not [{batch.max_loras}, 1, width, {max_rank}]")
        if not (a_slice.is_contiguous() and b_slice.is_contiguous()):
            raise ValueError("A and B are not contiguous")
        if {a_slice.dtype, b_slice.dtype, y.dtype} != {x.dtype}:
            raise ValueError(f"x is {x.dtype}; y, A or B is not")
    return Shape(tokens, columns, widths, max_rank, batch.max_loras)
