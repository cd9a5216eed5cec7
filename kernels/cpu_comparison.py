"""Our LoRA wrapper against vLLM's own on CPU, side by side: `python -m kernels.cpu_comparison [--json]`.

Both are the real classes, given the same batch and the same weights and called as a layer of vLLM calls
them. The two take turns, so that whatever else the machine does falls on both, and the speed-up is the median
of the ratios of neighbours. Both results are compared with the fp64 reference.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.batch import BASE_ROW
from kernels.reference import lora_linear_reference

MAX_LORAS = 8
HIDDEN = 1024


@dataclass(frozen=True)
class Shape:
    """One batch at one layer. `runs`: rows of an adapter follow each other, as in prefill."""

    tokens: int
    adapters: int
    rank: int = 16
    max_rank: int = 16
    base_share: float = 0.0
    runs: bool = False
    widths: tuple[int, ...] = (HIDDEN,)
    dtype: str = "float32"


TARGET = Shape(256, 8)
"""The shape of the issue's target: three times as fast, in any order of rows."""

SHAPES = (
    TARGET,
    Shape(256, 8, runs=True),
    Shape(256, 8, base_share=0.5),
    Shape(256, 8, widths=(HIDDEN, HIDDEN // 4, HIDDEN // 4)),
    Shape(256, 8, rank=8, max_rank=64),
    Shape(256, 8, dtype="bfloat16"),
    Shape(256, 1),
    Shape(16, 8),
    Shape(16, 8, base_share=0.5),
    Shape(16, 1),
    Shape(1, 1),
)


@dataclass(frozen=True)
class Layer:
    x: Tensor
    y: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    ranks: Tensor
    slots: np.ndarray[Any, np.dtype[np.int64]]


def layer_of(shape: Shape, seed: int = 0) -> Layer:
    """Random weights, zero beyond the true rank; values near 1 in x and y, products of the same size."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, shape.dtype)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    a = tuple(random(MAX_LORAS, 1, shape.max_rank, HIDDEN, scale=HIDDEN**-0.5) for _ in shape.widths)
    b = tuple(random(MAX_LORAS, 1, width, shape.max_rank, scale=shape.rank**-0.5) for width in shape.widths)
    for a_slice, b_slice in zip(a, b, strict=True):
        a_slice[:, :, shape.rank :] = 0
        b_slice[..., shape.rank :] = 0
    return Layer(
        random(shape.tokens, HIDDEN),
        random(shape.tokens, sum(shape.widths)),
        a,
        b,
        torch.full((len(shape.widths), MAX_LORAS), shape.rank, dtype=torch.int32),
        slots_of(shape),
    )


def slots_of(shape: Shape) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Slot of each row: [T] int64. Base rows are spread evenly."""
    slots = np.arange(shape.tokens) % shape.adapters
    if shape.runs:
        slots.sort()
    if shape.base_share:
        slots[np.random.default_rng(0).permutation(shape.tokens) < shape.base_share * shape.tokens] = BASE_ROW
    return slots


def wrapper_for(wrapper: type, layer: Layer) -> Any:
    """An instance that was told which adapter each row has."""
    from vllm.lora.layers import LoRAMapping

    made = wrapper(len(layer.slots), len(layer.slots), torch.device("cpu"), lora_config=None)
    adapter_ids = tuple((layer.slots + 1).tolist())  # 0: none
    mapping = LoRAMapping(adapter_ids, adapter_ids, is_prefill=True)
    made.update_metadata(mapping, list(range(1, MAX_LORAS + 1)), MAX_LORAS + 1, vocab_size=1)
    return made


def compared(shape: Shape, pairs: int) -> dict[str, Any]:
    """One row of the result: microseconds, speed-up and errors of both."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from kernels.plugin.ranks import ranks_of
    from kernels.plugin.wrapper_cpu import SpratPunicaWrapperCPU

    layer = layer_of(shape)
    ranks_of(layer.a).copy_(layer.ranks)
    wanted = lora_linear_reference(
        layer.y, layer.x, layer.a, layer.b, torch.from_numpy(layer.slots), layer.ranks
    )
    base = torch.from_numpy(layer.slots == BASE_ROW)
    calls, errors, base_rows_exact = [], [], []
    for wrapper in (wrapper_for(SpratPunicaWrapperCPU, layer), wrapper_for(PunicaWrapperCPU, layer)):
        y = layer.y.clone()
        call = partial(wrapper.add_lora_linear, y, layer.x, layer.a, layer.b, 1.0, shape.widths)
        call()
        errors.append(float((y.double() - wanted)[~base].abs().max()))
        base_rows_exact.append(torch.equal(y[base], layer.y[base]))
        calls.append(call)  # timed calls go on adding to y; what they cost does not depend on its values
    ours_us, stock_us = alternating_us(calls, pairs)
    ratios = [stock / ours for ours, stock in zip(ours_us, stock_us, strict=True)]
    return {
        **asdict(shape),
        "ours_us": spread(ours_us),
        "stock_us": spread(stock_us),
        "speedup": spread(ratios),
        "ours_max_error": errors[0],
        "stock_max_error": errors[1],
        "ours_base_rows_exact": base_rows_exact[0],
        "stock_base_rows_exact": base_rows_exact[1],
    }


def alternating_us(calls: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Microseconds of each call, taking turns; the first round warms up and is not kept."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, times in zip(calls, taken, strict=True):
            started_ns = time.perf_counter_ns()
            call()
            if number:
                times.append((time.perf_counter_ns() - started_ns) / 1000)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    fifths = statistics.quantiles(values, n=5)
    return {"p20": fifths[0], "p50": statistics.median(values), "p80": fifths[3]}


def comparison(pairs: int, shapes: Sequence[Shape] = SHAPES) -> dict[str, Any]:
    """The whole result; `cpu` has the fields of COMMANDS.md."""
    import vllm

    rows = [compared(shape, pairs) for shape in shapes]
    return {
        "device": platform.processor() or platform.machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        "threads": torch.get_num_threads(),
        "pairs": pairs,
        "rows": rows,
        "cpu": {
            "speedup_vs_stock": rows[0]["speedup"]["p50"],
            "base_rows_exact": all(row["ours_base_rows_exact"] for row in rows),
        },
    }


def table(result: dict[str, Any]) -> str:
    """For people: medians only."""
    heading = (
        "tokens adapters rank/max base rows, dtype      ours us  stock us speed-up base rows: ours, stock"
    )
    return "\n".join([heading, *map(_line, result["rows"])])


def _line(row: dict[str, Any]) -> str:
    ours, stock = ("exact" if row[f"{name}_base_rows_exact"] else "CHANGED" for name in ("ours", "stock"))
    order = "runs" if row["runs"] else "mixed"
    return (
        f"{row['tokens']:6} {row['adapters']:8} {row['rank']:4}/{row['max_rank']:<3} "
        f"{row['base_share']:4.0%} {order:5} {row['dtype']:8} {row['ours_us']['p50']:9.0f} "
        f"{row['stock_us']['p50']:9.0f} {row['speedup']['p50']:8.1f}x  {ours}, {stock}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.cpu_comparison", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--pairs", type=int, default=30, help="timed pairs per shape (default %(default)s)")
    arguments = parser.parse_args()
    with torch.inference_mode():
        result = comparison(arguments.pairs)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
