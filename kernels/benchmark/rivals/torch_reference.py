"""Our plain PyTorch reference, in float32: what correctness costs without a kernel."""

from __future__ import annotations

import torch

from kernels.benchmark.cases import Case, Run
from kernels.benchmark.rivals.files import Unavailable
from kernels.reference import lora_linear_reference

TOKENS_MAX = 16


class TorchReference:
    name = "torch_reference"
    looping = True

    def prepare(self, case: Case) -> Run:
        if case.cell.tokens > TOKENS_MAX:
            raise Unavailable(f"a loop over rows takes seconds beyond {TOKENS_MAX} tokens")
        slots = torch.from_numpy(case.slots)
        ranks = [case.ranks_by_slice(linear) for linear in case.linears]

        def run(index: int) -> None:
            for linear, ranks_of_slices in zip(case.linears, ranks, strict=True):
                a, b = linear.sets[index].a, linear.sets[index].b
                linear.y.copy_(
                    lora_linear_reference(
                        linear.y, linear.x, a, b, slots, ranks_of_slices, dtype=torch.float32
                    )
                )

        return run
