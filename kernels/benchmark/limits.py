"""The least time that a LoRA product can take on a machine (KERNELS.md section 5), and its rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from kernels.batch import BASE_ROW
from kernels.benchmark.grid import Cell


@dataclass(frozen=True)
class Work:
    """What has to be moved and computed, whoever does it."""

    bytes_min: int
    flops: int


@dataclass(frozen=True)
class MachineRates:
    """Measured on this machine, in this run. `copy` counts bytes read and bytes written."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


def work_of(cell: Cell, bytes_per_number: int) -> Work:
    """x is read once, y is read and written once, the weights of each adapter in use are read once at their
    true rank. Base rows are no work."""
    slots, ranks = cell.slots(), cell.ranks()
    rows = slots[slots != BASE_ROW]
    ranks_read = sum(int(ranks[slot]) for slot in set(rows.tolist()))
    ranks_multiplied = int(ranks[rows].sum())
    numbers = flops = 0
    for linear in cell.linears:
        widths = len(linear.widths_out) * linear.width_in + linear.width_out
        numbers += len(rows) * (linear.width_in + 2 * linear.width_out) + ranks_read * widths
        flops += 2 * ranks_multiplied * widths
    return Work(bytes_per_number * numbers, flops)


def limit_us(work: Work, rates: MachineRates) -> float:
    return 1e6 * max(work.bytes_min / rates.copy_bytes_per_s, work.flops / rates.matmul_flops_per_s)


def measure_rates(device: torch.device, dtype: torch.dtype) -> MachineRates:
    """A copy and a square product, both far larger than the caches; random numbers, because products of
    zeros run faster. About a second on an H200, a few on a CPU."""
    on_gpu = device.type == "cuda"
    return MachineRates(
        _copy_bytes_per_s(device, dtype, numbers=2**31 if on_gpu else 2**26),
        _matmul_flops_per_s(device, dtype, side=8192 if on_gpu else 1024),
    )


def _copy_bytes_per_s(device: torch.device, dtype: torch.dtype, numbers: int) -> float:
    source = torch.randn(numbers // 8, device=device).to(dtype).repeat(8)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return float(moved / _seconds(lambda: target.copy_(source), device))


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), device)


def _seconds(work: Callable[[], object], device: torch.device, warm_ups: int = 3, runs: int = 10) -> float:
    """Median; the device is idle before and after each run."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    return median([run() for _ in range(warm_ups + runs)][warm_ups:])
