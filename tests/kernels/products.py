"""Random LoRA products and what their results may differ from the truth by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kernels.batch import LoraBatch
from kernels.lora_linear import launches, lora_linear
from kernels.reference import lora_linear_reference
from kernels.selection import Settings

# Small grids: the interpreter runs one program after another.
SPLIT = Settings("split", block_k=32, block_n=32, rank_tile=32, parts=3, programs=4, expand_programs=6)
SINGLE = Settings("single", block_k=32, block_n=32, programs=6)
FUSED = Settings("fused", block_k=32, block_n=32, parts=2, programs=3)
ROUTES = {
    "split": SPLIT,
    "split_one_row": replace(SPLIT, one_row=True),
    "split_narrow": replace(SPLIT, rank_tile=16, parts=1),
    "split_tall": replace(SPLIT, block_m=64),
    "single": SINGLE,
    "single_one_row": replace(SINGLE, one_row=True),
    "fused": FUSED,
    "fused_tall": replace(FUSED, block_m=64, parts=1),
}

UNIT_ROUNDOFF = {
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,  # the interpreter truncates where a GPU rounds
    torch.float32: 2**-22,
}


@dataclass
class Product:
    """y += x·Aᵀ·Bᵀ. Past a slot's rank A is NaN, and so are B's whole groups of 8: reading them shows."""

    slots: Sequence[int]
    ranks: Sequence[Sequence[int]]
    """By slice, then by slot."""
    columns: int = 64
    widths: tuple[int, ...] = (48, 16, 32)
    max_rank: int = 16
    dtype: torch.dtype = torch.float16
    padding: int = 0
    """Rows of x and y beyond the batch, as in a padded CUDA graph."""
    seed: int = 0
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    a: list[Tensor] = field(init=False)
    b: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        tokens, max_loras = len(self.slots) + self.padding, len(self.ranks[0])
        self.x, self.y = normal(tokens, self.columns), normal(tokens, sum(self.widths))
        self.a = [normal(max_loras, 1, self.max_rank, self.columns) for _ in self.widths]
        self.b = [normal(max_loras, 1, width, self.max_rank) for width in self.widths]
        for a, b, ranks in zip(self.a, self.b, self.ranks, strict=True):
            for slot, rank in enumerate(ranks):
                a[slot, 0, rank:] = torch.nan
                b[slot, 0, :, rank:] = 0
                b[slot, 0, :, (rank + 7) // 8 * 8 :] = torch.nan

    @property
    def ranks_tensor(self) -> Tensor:
        return torch.tensor(self.ranks, dtype=torch.int32)

    @property
    def base_rows(self) -> list[int]:
        """Rows that no adapter may touch, those of the padding among them."""
        return [row for row, slot in enumerate([*self.slots, *[-1] * self.padding]) if slot < 0]

    def batch(self) -> LoraBatch:
        batch = LoraBatch(len(self.x) + 3, len(self.ranks[0]), "cpu")
        # What an earlier batch left behind must not show.
        batch.update(np.zeros(len(self.x), np.int32))
        batch.update(np.asarray(self.slots, np.int32))
        return batch

    def run(self, settings: Settings, *, add_inputs: bool = True) -> Tensor:
        """y after the kernels, with scratch memory full of NaN before."""
        y, batch = self.y.clone(), self.batch()
        arguments = (self.x, self.a, self.b, self.ranks_tensor, batch, settings)
        launches(y, *arguments)  # takes the scratch memory of the right size
        batch.scratch(0).fill_(torch.nan)
        lora_linear(y, *arguments, add_inputs=add_inputs)
        return y

    def expected(self) -> Tensor:
        slots = [*self.slots, *[-1] * self.padding]
        return lora_linear_reference(self.y, self.x, self.a, self.b, slots, self.ranks_tensor)

    def tolerance(self) -> Tensor:
        """Per element: one rounding of y, one of x·Aᵀ as operand, and fp32 sums."""
        expected, bound = self.expected(), torch.zeros(self.y.shape, dtype=torch.float64)
        unit = UNIT_ROUNDOFF[self.dtype]
        for row, slot in enumerate(self.slots):
            column = 0
            for a, b, ranks in zip(self.a, self.b, self.ranks, strict=True):
                rank, width = ranks[slot], b.shape[2]
                if slot >= 0:
                    a_used, b_used = a[slot, 0, :rank].double(), b[slot, 0, :, :rank].double().abs()
                    x = self.x[row].double()
                    rounded = unit * (a_used @ x).abs() + 2**-20 * (a_used.abs() @ x.abs())
                    bound[row, column : column + width] = b_used @ rounded
                column += width
        return bound + unit * (expected.abs() + bound)


def assert_right(product: Product, y: Tensor) -> None:
    expected, tolerance = product.expected(), product.tolerance()
    wrong = ~((y.double() - expected).abs() <= tolerance)  # NaN is wrong
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} elements, first at {wrong.nonzero()[0].tolist()}: "
        f"{y[wrong][0]} instead of {expected[wrong][0]} ± {tolerance[wrong][0]}"
    )
    assert torch.equal(y[product.base_rows], product.y[product.base_rows]), "a base row changed"
