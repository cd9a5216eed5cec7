"""The numbers of a cell: inputs and weight sets, the same tensors for every system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.benchmark.grid import Cell, Linear

SEED = 20


@dataclass(frozen=True)
class WeightSet:
    """The adapters of one layer, as vLLM stacks them: a tensor per slice, numbers beyond the rank are 0."""

    a: tuple[torch.Tensor, ...]  # S of [max_loras, 1, R, K]
    b: tuple[torch.Tensor, ...]  # S of [max_loras, 1, N_s, R]


@dataclass(frozen=True)
class LinearCase:
    linear: Linear
    x: torch.Tensor  # [T, K]
    y_before: torch.Tensor  # [T, N]
    y: torch.Tensor  # [T, N], where the systems add
    sets: tuple[WeightSet, ...]


@dataclass(frozen=True)
class Case:
    """`interpreted`: Triton runs in its interpreter, so the device is the CPU and nothing is timed."""

    cell: Cell
    linears: tuple[LinearCase, ...]
    slots: NDArray[np.int32]  # [T]
    ranks: NDArray[np.int32]  # [max_loras], of every slice
    device: torch.device
    interpreted: bool

    @property
    def sets(self) -> int:
        return len(self.linears[0].sets)

    def reset(self) -> None:
        for each in self.linears:
            each.y.copy_(each.y_before)

    def outputs(self) -> list[torch.Tensor]:
        return [each.y.clone() for each in self.linears]

    def ranks_by_slice(self, linear: LinearCase) -> torch.Tensor:
        """int32 [S, max_loras] on the host."""
        return torch.from_numpy(np.tile(self.ranks, (len(linear.linear.widths_out), 1)))


Run = Callable[[int], None]
"""Adds the adapters of one weight set to the `y` of every linear of the case it was prepared for."""


@dataclass
class CaseBuilder:
    """Cells that follow each other and need the same weights share them: making them takes the most time."""

    device: torch.device
    dtype: torch.dtype
    sets: int
    interpreted: bool = False
    _kept: dict[tuple[object, ...], list[tuple[WeightSet, ...]]] = field(default_factory=dict)

    def build(self, cell: Cell) -> Case:
        key = (cell.hidden, cell.projection, cell.rank_mix, cell.max_rank, cell.max_loras)
        if key not in self._kept:
            self._kept.clear()  # first, so that both never fill the device together
            torch.manual_seed(SEED)
            self._kept[key] = [
                tuple(self._weights(cell, linear) for _ in range(self.sets)) for linear in cell.linears
            ]
        torch.manual_seed(SEED + cell.tokens)
        return Case(
            cell,
            tuple(
                self._linear_case(cell, linear, sets)
                for linear, sets in zip(cell.linears, self._kept[key], strict=True)
            ),
            cell.slots(),
            cell.ranks(),
            self.device,
            self.interpreted,
        )

    def _linear_case(self, cell: Cell, linear: Linear, sets: tuple[WeightSet, ...]) -> LinearCase:
        x = self._normal(cell.tokens, linear.width_in)
        y = self._normal(cell.tokens, linear.width_out)
        return LinearCase(linear, x, y, y.clone(), sets)

    def _weights(self, cell: Cell, linear: Linear) -> WeightSet:
        """x·Aᵀ is about N(0, 1), the whole product a tenth of y: no sum of many replays overflows."""
        rank = torch.arange(cell.max_rank, device=self.device)
        used = rank < torch.from_numpy(cell.ranks()).to(self.device)[:, None, None]  # [max_loras, 1, R]
        a = tuple(
            self._normal(cell.max_loras, 1, cell.max_rank, linear.width_in)
            .mul_(linear.width_in**-0.5)
            .mul_(used[..., None])
            for _ in linear.widths_out
        )
        b = tuple(
            self._normal(cell.max_loras, 1, width, cell.max_rank)
            .mul_(0.1 * cell.max_rank**-0.5)
            .mul_(used[:, :, None])
            for width in linear.widths_out
        )
        return WeightSet(a, b)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)
