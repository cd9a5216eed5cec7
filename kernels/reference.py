"""Plain PyTorch truth: what every kernel is compared with, in tests and in the benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lora_linear_reference(  # noqa: PLR0917 (operands come in one order everywhere)
    y: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    slots: Tensor | Sequence[int],
    ranks: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """y + x·Aᵀ·Bᵀ with each row's own adapter, as a new `[T, N]` tensor of `dtype`; no argument changes.

    `x` is `[T, K]`, `y` `[T, N]`; `a` and `b` hold S slices `[max_loras, 1, R, K]` and
    `[max_loras, 1, N_s, R]` with ΣN_s = N. `slots[t]` is row t's slot, -1 for a base row; `ranks`
    (int32 `[S, max_loras]`) says how much of R each slot really uses: what lies beyond it is not read.
    """
    result = y.to(dtype, copy=True)
    for row, slot in enumerate(torch.as_tensor(slots).tolist()):
        if slot < 0:
            continue
        column = 0
        for slice_, (a_slice, b_slice) in enumerate(zip(a, b, strict=True)):
            rank, width = int(ranks[slice_, slot]), b_slice.shape[2]
            shrunk = a_slice[slot, 0, :rank].to(dtype) @ x[row].to(dtype)
            result[row, column : column + width] += b_slice[slot, 0, :, :rank].to(dtype) @ shrunk
            column += width
    return result
