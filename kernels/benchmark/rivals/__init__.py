"""The systems that are compared, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from kernels.benchmark.cases import Case, Run
from kernels.benchmark.rivals import sglang_kernels, vllm_cpu, vllm_kernels
from kernels.benchmark.rivals.cublas_loop import AdapterLoop
from kernels.benchmark.rivals.files import Package, Source, Unavailable, find
from kernels.benchmark.rivals.ours import SpratGrouped, SpratKernels
from kernels.benchmark.rivals.torch_reference import TorchReference

OURS = "sprat"
SYSTEMS = {
    "gpu": (OURS, *vllm_kernels.SYSTEMS, *sglang_kernels.SYSTEMS, "cublas_loop", TorchReference.name),
    "cpu": (OURS, vllm_cpu.VllmCpu.name, "matmul_loop"),
}
"""In the order in which they are measured and shown."""

PACKAGES = (vllm_kernels.PACKAGE, vllm_cpu.PACKAGE, sglang_kernels.PACKAGE)


class System(Protocol):
    name: str
    looping: bool
    """A loop over adapters on the host: thousands of nodes in a graph, so fewer weight sets are recorded."""

    def prepare(self, case: Case) -> Run:
        """Whatever a server does once per batch or once per weight, outside of what is timed.

        Raises:
            Unavailable: not for this cell.
        """
        ...


@dataclass
class Sources:
    """Finds each package once. `given`: package name → folder that its folder is in."""

    given: Mapping[str, Path]

    def __post_init__(self) -> None:
        self._found: dict[Package, Source | Unavailable] = {}

    def of(self, package: Package) -> Source:
        if package not in self._found:
            try:
                self._found[package] = find(package, self.given.get(package.name))
            except Unavailable as reason:
                self._found[package] = reason
        found = self._found[package]
        if isinstance(found, Unavailable):
            raise found
        return found

    def versions(self) -> dict[str, str]:
        return {
            package.name: found.version for package, found in self._found.items() if isinstance(found, Source)
        }


def open_systems(names: Iterable[str], kind: str, sources: Sources) -> dict[str, System | Unavailable]:
    """`kind`: a key of `SYSTEMS`. One that cannot run here is the reason why."""
    makers = _makers(kind, sources)
    opened: dict[str, System | Unavailable] = {}
    for name in names:
        try:
            opened[name] = makers[name]()
        except Unavailable as reason:
            opened[name] = reason
    return opened


def _makers(kind: str, sources: Sources) -> Mapping[str, Callable[[], System]]:
    if kind == "cpu":
        return {
            OURS: SpratGrouped,
            vllm_cpu.VllmCpu.name: lambda: vllm_cpu.VllmCpu(sources.of(vllm_cpu.PACKAGE)),
            "matmul_loop": partial(AdapterLoop, "matmul_loop"),
        }

    def from_package(package: Package, make: Callable[[Source], System]) -> Callable[[], System]:
        return lambda: make(sources.of(package))

    return {
        OURS: SpratKernels,
        "cublas_loop": partial(AdapterLoop, "cublas_loop"),
        TorchReference.name: TorchReference,
        **{
            name: from_package(rival.PACKAGE, make)
            for rival in (vllm_kernels, sglang_kernels)
            for name, make in rival.SYSTEMS.items()
        },
    }
