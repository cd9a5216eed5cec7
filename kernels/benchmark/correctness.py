"""Is what a system computed right? Every element against float64, base rows bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kernels.batch import BASE_ROW
from kernels.benchmark.cases import Case, LinearCase
from kernels.reference import lora_linear_reference

ROWS_AT_ONCE = 2048
"""More float64 intermediates than those of a few thousand rows would fill the device."""


@dataclass(frozen=True)
class Correctness:
    """`error` is the largest error of an element over its bound, so 1 is still right."""

    error: float
    base_rows_exact: bool

    @property
    def exact(self) -> bool:
        return self.error <= 1 and self.base_rows_exact  # false where the error is NaN


@dataclass(frozen=True)
class _LinearTruth:
    y_before: torch.Tensor
    expected: torch.Tensor  # float64 [T, N]
    bound: torch.Tensor  # float64 [T, N]


class Truth:
    """What a case's `y` must be after weight set 0 was added to `y_before` once, and how far off is allowed.

    The bound of an element is ε·(|expected| + |x·Aᵀ|·|B|ᵀ) + ε32·|x|·|A|ᵀ·|B|ᵀ. That has room for two
    roundings of the result, as a system may round the product before it adds it to y; for two of each
    number between the two products; and for float32 sums in any order. A wrong adapter, rank or row is off
    by orders of magnitude more.
    """

    def __init__(self, case: Case) -> None:
        self._base = torch.from_numpy(case.slots == BASE_ROW).to(case.device)
        self._linears = [_truth_of(case, linear) for linear in case.linears]

    def check(self, outputs: Sequence[torch.Tensor]) -> Correctness:
        """`outputs`: y of each linear."""
        errors, kept = [], True
        for truth, out in zip(self._linears, outputs, strict=True):
            kept &= torch.equal(out[self._base], truth.y_before[self._base])
            errors += [
                ((out[rows] - truth.expected[rows]).abs() / truth.bound[rows]).amax()
                for rows in _chunks(len(out))
            ]
        return Correctness(float(torch.stack(errors).amax()), kept)


def _truth_of(case: Case, linear: LinearCase) -> _LinearTruth:
    expected, bound = (torch.empty(linear.y.shape, dtype=torch.float64, device=case.device) for _ in range(2))
    ranks = case.ranks_by_slice(linear)
    weights = linear.sets[0]
    for rows in _chunks(len(linear.y)):
        x, y, slots = linear.x[rows], linear.y_before[rows], torch.from_numpy(case.slots[rows])
        expected[rows] = lora_linear_reference(y, x, weights.a, weights.b, slots, ranks)
        bound[rows] = torch.finfo(y.dtype).eps * expected[rows].abs()
        bound[rows] += _bound_of_product(linear, x, slots.to(case.device))
    bound.clamp_min_(torch.finfo(torch.float64).tiny)  # of a base row whose y is 0
    return _LinearTruth(linear.y_before, expected, bound)


def _bound_of_product(linear: LinearCase, x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The two terms with A and B, float64 [rows, N]; 0 for base rows."""
    total = torch.zeros(len(x), linear.linear.width_out, dtype=torch.float64, device=x.device)
    epsilon, epsilon_of_sums = torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps
    weights = linear.sets[0]
    for slot in slots.unique().tolist():
        if slot == BASE_ROW:
            continue
        rows = (slots == slot).nonzero().squeeze(1)
        inputs, parts = x[rows].double(), []
        for a, b in zip(weights.a, weights.b, strict=True):
            shrink = a[slot, 0].double().T
            between = epsilon * (inputs @ shrink).abs() + epsilon_of_sums * (inputs.abs() @ shrink.abs())
            parts.append(between @ b[slot, 0].double().abs().T)
        total[rows] = torch.cat(parts, dim=1)
    return total


def _chunks(rows: int) -> list[slice]:
    bounds = [*range(0, rows, ROWS_AT_ONCE), rows]
    return [slice(*pair) for pair in pairwise(bounds)]
