"""Our own ops, called as the plug-in calls them."""

from __future__ import annotations

from kernels.batch import LoraBatch
from kernels.benchmark.cases import Case, Run
from kernels.grouped import add_lora, blocks_of
from kernels.lora_linear import lora_linear
from kernels.selection import Settings


class SpratKernels:
    """The Triton kernels: the batch is described once, for all layers of a step. `settings`: in place of
    those that a server would choose."""

    name = "sprat"
    looping = False

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings

    def prepare(self, case: Case) -> Run:
        batch = LoraBatch(case.cell.tokens, case.cell.max_loras, case.device)
        batch.update(case.slots)
        ranks = [case.ranks_by_slice(linear).to(case.device) for linear in case.linears]

        def run(index: int) -> None:
            for linear, ranks_of_slices in zip(case.linears, ranks, strict=True):
                a, b = linear.sets[index].a, linear.sets[index].b
                lora_linear(linear.y, linear.x, a, b, ranks_of_slices, batch, self._settings)

        return run


class SpratGrouped:
    """The CPU's serving path: rows are grouped once, for all layers of a step."""

    name = "sprat"
    looping = False

    def prepare(self, case: Case) -> Run:
        blocks = blocks_of(case.slots)
        ranks = [case.ranks_by_slice(linear) for linear in case.linears]

        def run(index: int) -> None:
            for linear, ranks_of_slices in zip(case.linears, ranks, strict=True):
                a, b = linear.sets[index].a, linear.sets[index].b
                add_lora(linear.y, linear.x, a, b, ranks_of_slices, blocks)

        return run
