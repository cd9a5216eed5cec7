"""SGLang's default LoRA kernels (chunked SGMV, 0.5.23), called as its `chunked_backend.py` calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kernels.batch import BASE_ROW
from kernels.benchmark.cases import Case, LinearCase, Run
from kernels.benchmark.rivals.files import Package, Source, load

OPS = "sglang.kernels.ops.lora.dense"
_FOLDER = OPS.replace(".", "/")
PACKAGE = Package(
    "sglang",
    distributions=("sglang",),
    requirement="sglang==0.5.23",
    files=(
        f"{_FOLDER}/lora_tuning_config.py",
        f"{_FOLDER}/chunked_sgmv_shrink.py",
        f"{_FOLDER}/chunked_sgmv_expand.py",
        f"{_FOLDER}/csgmv_configs/*/*.json",  # its tuned settings, some of them for the H200
    ),
)


@dataclass(frozen=True)
class BatchSegments:
    """The fields of SGLang's batch description that the two functions read."""

    max_len: int
    num_segments: int
    seg_indptr: torch.Tensor  # int32 [segments + 1]
    weight_indices: torch.Tensor  # int32 [segments]
    permutation: torch.Tensor  # int32 [T]
    lora_ranks: torch.Tensor  # int32 [slots]
    scalings: torch.Tensor  # float32 [slots]
    use_cuda_graph: bool = False
    """A captured server graph has a segment for every row it was captured for; here the grid counts the
    segments there are, which is the best case for these kernels."""


class SglangCsgmv:
    """`chunk_rows_max`: the server's `--max-lora-chunk-size`, 16 unless it is set."""

    looping = False

    def __init__(self, name: str, source: Source, chunk_rows_max: int) -> None:
        self.name = name
        modules = load(source, _stubs())
        self._shrink = modules[f"{OPS}.chunked_sgmv_shrink"].chunked_sgmv_lora_shrink_forward
        self._expand = modules[f"{OPS}.chunked_sgmv_expand"].chunked_sgmv_lora_expand_forward
        self._chunk_rows_max = chunk_rows_max

    def prepare(self, case: Case) -> Run:
        segments = segments_of(case, self._chunk_rows_max)
        adds = [self._add(case, linear, segments) for linear in case.linears]

        def run(index: int) -> None:
            for add in adds:
                add(index)

        return run

    def _add(self, case: Case, linear: LinearCase, segments: BatchSegments) -> Callable[[int], None]:
        packed = [pack(case.ranks, each.a, each.b) for each in linear.sets]
        widths = linear.linear.widths_out
        ends_cpu = torch.from_numpy(np.cumsum((0, *widths), dtype=np.int32))
        ends = ends_cpu.to(case.device)

        def add(index: int) -> None:
            a, b = packed[index]
            between = self._shrink(linear.x, a, segments, num_slices=len(widths))
            self._expand(between, b, segments, ends, max(widths), linear.y, slice_offsets_cpu=ends_cpu)

        return add


def segments_of(case: Case, chunk_rows_max: int) -> BatchSegments:
    """Rows ordered by slot and cut into chunks; base rows have a slot of rank 0 behind the others."""
    base_slot = case.cell.max_loras
    slots = np.where(case.slots == BASE_ROW, base_slot, case.slots)
    tokens = len(slots)
    chunk_rows = min(chunk_rows_max, 128 if tokens >= 256 else 32 if tokens >= 64 else 16)
    weight_indices, ends = [], [0]
    for slot, rows in zip(*np.unique(slots, return_counts=True), strict=True):
        for start in range(0, rows, chunk_rows):
            weight_indices.append(slot)
            ends.append(ends[-1] + min(chunk_rows, rows - start))

    def on_device(values: object, dtype: type[np.generic] = np.int32) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype)).to(case.device)

    return BatchSegments(
        max_len=chunk_rows,
        num_segments=len(weight_indices),
        seg_indptr=on_device(ends),
        weight_indices=on_device(weight_indices),
        permutation=on_device(np.argsort(slots, kind="stable")),
        lora_ranks=on_device([*case.ranks, 0]),
        scalings=on_device(np.ones(base_slot + 1), np.float32),
    )


def pack(
    ranks: np.ndarray, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Their layout: A [slots, S·R, K] where slice s of an adapter of rank r is in rows s·r to (s+1)·r, and
    B [slots, N, R]. The slot behind the others is that of the base rows."""
    max_loras, _, max_rank, width_in = a[0].shape
    packed_a = a[0].new_zeros(max_loras + 1, len(a) * max_rank, width_in)
    packed_b = torch.cat([each[:, 0] for each in b], dim=1)
    for rank in np.unique(ranks).tolist():
        slots = torch.from_numpy(np.flatnonzero(ranks == rank)).to(packed_a.device)
        for index, each in enumerate(a):
            packed_a[slots, index * rank : (index + 1) * rank] = each[slots, 0, :rank]
    return packed_a, torch.cat([packed_b, packed_b.new_zeros(1, *packed_b.shape[1:])])


def _stubs() -> Mapping[str, Mapping[str, Any]]:
    off = SimpleNamespace(get=lambda: False)
    return {
        "sglang.srt": {},
        "sglang.srt.environ": {
            "envs": SimpleNamespace(
                SGLANG_ENABLE_LORA_CSGMV_SPLIT_K=off, SGLANG_ENABLE_DETERMINISTIC_INFERENCE=off
            )
        },
        "sglang.srt.lora": {},
        "sglang.srt.lora.utils": {"LoRABatchInfo": BatchSegments},
        "sglang.srt.utils": {
            "cached_triton_kernel": lambda _key: lambda kernel: kernel,
            "get_device_name": lambda: torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "sglang.kernels": {},
        "sglang.kernels.ops": {},
        "sglang.kernels.ops.lora": {},
        OPS: {},
    }


SYSTEMS: Mapping[str, Callable[[Source], SglangCsgmv]] = {
    "sglang_csgmv": lambda source: SglangCsgmv("sglang_csgmv", source, chunk_rows_max=16),
    "sglang_csgmv_128": lambda source: SglangCsgmv("sglang_csgmv_128", source, chunk_rows_max=128),
}
