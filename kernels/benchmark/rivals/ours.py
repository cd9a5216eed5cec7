"""Our own ops, called as the plug-in calls them."""

from __future__ import annotations

from kernels.benchmark.cases import Case, Run


class SpratKernels:
    """The Triton kernels: the batch is described once, for all layers of a step."""

    name = "sprat"
    looping = False

    def prepare(self, case: Case) -> Run:
        from kernels.batch import LoraBatch
        from kernels.lora_linear import lora_linear

        batch = LoraBatch(case.cell.tokens, case.cell.max_loras, case.device)
        batch.update(case.slots)
        ranks = [case.ranks_by_slice(linear).to(case.device) for linear in case.linears]

        def run(index: int) -> None:
            for linear, ranks_of_slices in zip(case.linears, ranks, strict=True):
                weights = linear.sets[index]
                lora_linear(linear.y, linear.x, weights.a, weights.b, ranks_of_slices, batch)

        return run


class SpratGrouped:
    """The CPU's serving path."""

    name = "sprat"
    looping = False

    def prepare(self, case: Case) -> Run:
        from kernels.grouped import grouped_lora_linear

        ranks = [case.ranks_by_slice(linear).to(case.device) for linear in case.linears]

        def run(index: int) -> None:
            for linear, ranks_of_slices in zip(case.linears, ranks, strict=True):
                weights = linear.sets[index]
                grouped_lora_linear(linear.y, linear.x, weights.a, weights.b, ranks_of_slices, case.slots)

        return run
