"""Nobody's kernel: one pair of matrix products per adapter and slice, by cuBLAS or the CPU's library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kernels.batch import BASE_ROW
from kernels.benchmark.cases import Case, LinearCase, Run


@dataclass(frozen=True)
class Rows:
    """Rows of one adapter: `index` is a slice where they follow each other, which needs no copies."""

    slot: int
    rank: int
    index: slice | torch.Tensor


class AdapterLoop:
    """The loop is on the host and knows the batch, so a graph holds the products alone."""

    looping = True

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, case: Case) -> Run:
        groups = [
            Rows(slot, int(case.ranks[slot]), _index(np.flatnonzero(case.slots == slot), case.device))
            for slot in np.unique(case.slots).tolist()
            if slot != BASE_ROW
        ]

        def run(index: int) -> None:
            for linear in case.linears:
                for group in groups:
                    _add(linear, index, group)

        return run


def _add(linear: LinearCase, index: int, group: Rows) -> None:
    x, y = linear.x[group.index], linear.y[group.index]
    weights, start = linear.sets[index], 0
    for a, b in zip(weights.a, weights.b, strict=True):
        between = x @ a[group.slot, 0, : group.rank].T
        width = b.shape[2]
        y[:, start : start + width].addmm_(between, b[group.slot, 0, :, : group.rank].T)
        start += width
    if not isinstance(group.index, slice):
        linear.y[group.index] = y


def _index(rows: np.ndarray, device: torch.device) -> slice | torch.Tensor:
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return slice(first, last + 1)
    return torch.from_numpy(rows).to(device)
