"""y += x·Aᵀ·Bᵀ with one adapter per row or none, in plain PyTorch: the path that serves on CPU.

Rows are grouped by adapter once per batch (`blocks_of`); every layer then multiplies each segment by its own
adapter at its true rank. Rows without adapter are in no segment, so nothing reads or writes them. To copy
the whole adapter for every row instead moves rank times K numbers per row before the first product
(KERNELS.md section 3.8).

Sums are kept in float32 whatever the dtype of x, A, B and y, and y is rounded once. Multiplying bfloat16 as
it is would be slower: without AVX-512 BF16, PyTorch has no fast product for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.batch import BASE_ROW


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one adapter that follow each other in their block."""

    slot: int
    rows: slice


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the batch that are read and written together: a slice needs no copy, indices [n] need one."""

    rows: slice | Tensor
    segments: tuple[Segment, ...]

    def take(self, values: Tensor) -> Tensor:
        """The block's rows of `values` [T, W] in float32; a view where no copy is needed."""
        if isinstance(self.rows, slice):
            return values[self.rows].float()
        return values.index_select(0, self.rows).float()

    def put(self, values: Tensor, taken: Tensor) -> None:
        """Write back what `take` gave and the caller changed in place; the one rounding."""
        if isinstance(self.rows, slice):
            target = values[self.rows]
            if target.dtype != taken.dtype:
                target.copy_(taken)
        else:
            values.index_copy_(0, self.rows, taken.to(values.dtype))


def blocks_of(slots: NDArray[np.integer]) -> tuple[Block, ...]:
    """Group rows by slot. `slots`: [T], `BASE_ROW` for rows without adapter, which are left out.

    An adapter whose rows follow each other gets a block of its own. All others share one, so that their rows
    are gathered and scattered once, not once per adapter.
    """
    order = np.argsort(slots, kind="stable").astype(np.int64, copy=False)
    order = order[np.count_nonzero(slots == BASE_ROW) :]
    of_row = slots[order]
    starts = np.flatnonzero(np.diff(of_row, prepend=BASE_ROW))
    ends = np.append(starts[1:], len(order))
    blocks = []
    scattered: list[Segment] = []
    scattered_rows: list[NDArray[np.int64]] = []
    taken = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
        slot, rows, count = int(of_row[start]), order[start:end], end - start
        first = int(rows[0])
        if int(rows[-1]) - first + 1 == count:
            blocks.append(Block(slice(first, first + count), (Segment(slot, slice(0, count)),)))
        else:
            scattered.append(Segment(slot, slice(taken, taken + count)))
            scattered_rows.append(rows)
            taken += count
    if scattered:
        blocks.append(Block(torch.from_numpy(np.concatenate(scattered_rows)), tuple(scattered)))
    return tuple(blocks)


def grouped_lora_linear(  # noqa: PLR0917 (the order of all LoRA operations here)
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    ranks: Tensor,
    slots: NDArray[np.integer] | Tensor,
) -> None:
    """Add each row's adapter to y in place.

    y: [T, N], N the sum of the slices' widths. x: [T, K]. a: S tensors [max_loras, 1, R, K]. b: S tensors
    [max_loras, 1, N_s, R]. ranks: int32 [S, max_loras], 0 for a slice that the adapter leaves alone.
    slots: [T] on the host, `BASE_ROW` or less than max_loras.
    """
    add_lora(y, x, a, b, ranks, blocks_of(np.asarray(slots)))


def add_lora(  # noqa: PLR0917 (the order of all LoRA operations here)
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    ranks: Tensor,
    blocks: tuple[Block, ...],
    scale: float = 1.0,
) -> None:
    """`grouped_lora_linear` for rows that are grouped already: once per batch instead of once per layer."""
    rank_of: list[list[int]] = ranks.tolist()
    for block in blocks:
        if not any(slice_ranks[segment.slot] for segment in block.segments for slice_ranks in rank_of):
            continue
        inputs, outputs = block.take(x), block.take(y)
        for segment in block.segments:
            rows = inputs[segment.rows]
            column = 0
            for a_slice, b_slice, slice_ranks in zip(a, b, rank_of, strict=True):
                width, rank = b_slice.shape[-2], slice_ranks[segment.slot]
                if rank:
                    hidden = rows @ a_slice[segment.slot, 0, :rank].float().T
                    outputs[segment.rows, column : column + width].addmm_(
                        hidden, b_slice[segment.slot, 0, :, :rank].float().T, alpha=scale
                    )
                column += width
        block.put(y, outputs)


def shrink(  # noqa: PLR0917 (the order of all LoRA operations here)
    hidden: Sequence[Tensor] | Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    ranks: Tensor,
    blocks: tuple[Block, ...],
    scale: float = 1.0,
) -> None:
    """First half: hidden[s] = x·A_sᵀ·scale for rows with adapter, up to its rank.

    hidden: S tensors [T, R] of zeros; what is beyond a row's rank, and rows without adapter, stay zero.
    """
    rank_of: list[list[int]] = ranks.tolist()
    for block in blocks:
        inputs = block.take(x)
        for target, a_slice, slice_ranks in zip(hidden, a, rank_of, strict=True):
            outputs = block.take(target)
            for segment in block.segments:
                rank = slice_ranks[segment.slot]
                product = inputs[segment.rows] @ a_slice[segment.slot, 0, :rank].float().T
                outputs[segment.rows, :rank] = product * scale
            block.put(target, outputs)


def expand(
    y: Tensor,
    hidden: Sequence[Tensor] | Tensor,
    b: Sequence[Tensor],
    blocks: tuple[Block, ...],
    *,
    add_inputs: bool = True,
) -> None:
    """Second half: y += hidden[s]·B_sᵀ for rows with adapter; without `add_inputs` y is replaced there.

    hidden: S tensors [T, R], zero beyond a row's rank.
    """
    for block in blocks:
        outputs = block.take(y)
        column = 0
        for source, b_slice in zip(hidden, b, strict=True):
            inputs = block.take(source)
            width = b_slice.shape[-2]
            for segment in block.segments:
                outputs[segment.rows, column : column + width].addmm_(
                    inputs[segment.rows], b_slice[segment.slot, 0].float().T, beta=int(add_inputs)
                )
            column += width
        block.put(y, outputs)
