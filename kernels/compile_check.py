"""Compiles the kernels for the H200 (sm_90) on any machine and reads what they use of it.

    python -m kernels.compile_check [--json] [--selected] [--jobs N]

Every launch that the selection can return (bf16 and fp16) and every one of the tuner's search space. A kernel
that spills registers, or needs more shared memory than a block may have, fails the check.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.batch import LoraBatch
from kernels.lora_linear import launches
from kernels.ops.launch import Launch
from kernels.selection import H200_MULTIPROCESSORS, Settings, Shape, heuristic, search_space

TARGET = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024
VECTOR_BYTES = 16
"""Integers and pointers divisible by this are known to be so in compiled code, as at a real launch."""

DTYPES = (torch.bfloat16, torch.float16)

LAYERS = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
    "odd": (257, (100, 60)),
}
"""K and widths. Sizes only matter for what they are divisible by; `odd` is divisible by nothing."""

TOKENS = (1, 16, 64, 256, 2048, 16384)
MAX_RANKS = (8, 16, 64, 256)
MAX_LORAS = 64


@dataclass(frozen=True, slots=True)
class Case:
    layer: str
    shape: Shape
    settings: Settings
    dtype: torch.dtype

    def launches(self) -> tuple[Launch, ...]:
        """What this case launches, with tensors that have a shape and no memory."""
        shape = self.shape
        batch = LoraBatch(shape.tokens, shape.max_loras, "meta")
        x = torch.empty(shape.tokens, shape.columns, dtype=self.dtype, device="meta")
        y = x.new_empty(shape.tokens, sum(shape.widths))
        a = [x.new_empty(shape.max_loras, 1, shape.max_rank, shape.columns) for _ in shape.widths]
        b = [x.new_empty(shape.max_loras, 1, width, shape.max_rank) for width in shape.widths]
        ranks = x.new_empty(len(a), shape.max_loras, dtype=torch.int32)
        return launches(y, x, a, b, ranks, batch, self.settings)


@dataclass(frozen=True, slots=True)
class Row:
    """One compiled kernel."""

    kernel: str
    layer: str
    dtype: str
    max_rank: int
    settings: dict[str, Any]
    registers: int
    shared_bytes: int
    stack_bytes: int
    """Local memory per thread: what did not fit the registers."""

    @property
    def fits(self) -> bool:
        return self.stack_bytes == 0 and self.shared_bytes <= MAX_SHARED_BYTES


def selected_cases(tokens: Iterable[int] = TOKENS, max_ranks: Iterable[int] = MAX_RANKS) -> Iterator[Case]:
    """What the heuristic returns, with and without programmatic dependent launch."""
    for shape, layer in _shapes(tokens, max_ranks):
        settings = heuristic(shape, H200_MULTIPROCESSORS)
        for dtype in DTYPES:
            yield Case(layer, shape, settings, dtype)
            if settings.route == "split":
                yield Case(layer, shape, replace(settings, pdl=True), dtype)


def searched_cases() -> Iterator[Case]:
    """The tuner's search space: bf16, the dtype that is served, at one layer per number of slices."""
    for shape, layer in _shapes(TOKENS, (16, 64)):
        if layer in {"qkv", "o", "gate_up"}:
            for settings in search_space(shape, H200_MULTIPROCESSORS):
                yield Case(layer, shape, settings, torch.bfloat16)


def check(cases: Iterable[Case], *, jobs: int = 1) -> Iterator[Row]:
    """Compiles each different kernel of these cases once, in order."""
    distinct: dict[str, tuple[Case, int]] = {}
    for case in cases:
        for index, launch in enumerate(case.launches()):
            distinct.setdefault(_key(launch), (case, index))
    if jobs == 1:
        yield from map(_row, distinct.values())
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_row, distinct.values())


def compile_launch(launch: Launch) -> Any:
    """The compiled kernel, specialised as Triton does it for these arguments at run time."""
    return triton.compile(_source(launch), target=TARGET, options=launch.options)


def _shapes(tokens: Iterable[int], max_ranks: Iterable[int]) -> Iterator[tuple[Shape, str]]:
    tokens, max_ranks = tuple(tokens), tuple(max_ranks)
    for layer, (columns, widths) in LAYERS.items():
        for rank in max_ranks:
            for count in tokens:
                yield Shape(count, columns, widths, rank, MAX_LORAS), layer


def _row(work: tuple[Case, int]) -> Row:
    case, index = work
    launch = case.launches()[index]
    compiled = compile_launch(launch)
    registers, stack_bytes = _resources(compiled.asm["cubin"])
    return Row(
        kernel=launch.kernel.fn.__name__,
        layer=case.layer,
        dtype=str(case.dtype).removeprefix("torch."),
        max_rank=case.shape.max_rank,
        settings=asdict(case.settings),
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        stack_bytes=stack_bytes,
    )


def _source(launch: Launch) -> ASTSource:
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        path = (parameter.num,)
        if parameter.is_constexpr:
            signature[parameter.name], constants[path] = "constexpr", value
        elif isinstance(value, tuple):
            parts = [_argument(each, (*path, i), constants, attributes) for i, each in enumerate(value)]
            signature[parameter.name] = tuple(parts)
        elif parameter.do_not_specialize:
            signature[parameter.name] = "i32"
        else:
            signature[parameter.name] = _argument(value, path, constants, attributes)
    return ASTSource(launch.kernel, signature, constants, attributes)


def _argument(
    value: torch.Tensor | int,
    path: tuple[int, ...],
    constants: dict[tuple[int, ...], Any],
    attributes: dict[tuple[int, ...], list[list[Any]]],
) -> str:
    if isinstance(value, int) and value == 1:
        constants[path] = 1
        return "constexpr"
    if isinstance(value, torch.Tensor) or value % VECTOR_BYTES == 0:
        attributes[path] = [["tt.divisibility", VECTOR_BYTES]]
    if isinstance(value, torch.Tensor):
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}
        return f"*{names[value.dtype]}"
    return "i32"


def _key(launch: Launch) -> str:
    source = _source(launch)
    parts = (source.signature, source.constants, source.attrs, launch.options)
    return f"{launch.kernel.fn.__name__} {parts}"


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread, from the tool that Triton's wheel ships."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "-res-usage", str(file)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"no resource usage in {text!r}")
    return int(found[1]), int(found[2])


def _line(*columns: object) -> str:
    return "{:14} {:8} {:9} {:>4} {:>5} {:>7} {:>6}  {}".format(*columns)


def _table_line(row: Row) -> str:
    settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
    return _line(
        row.kernel,
        row.layer,
        row.dtype,
        row.max_rank,
        row.registers,
        row.shared_bytes,
        row.stack_bytes,
        settings if row.fits else f"{settings}  DOES NOT FIT",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows and totals as JSON")
    parser.add_argument("--selected", action="store_true", help="only what the selection returns")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")

    cases = [*selected_cases(), *([] if options.selected else searched_cases())]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        if not options.json:
            print(_line("kernel", "layer", "dtype", "R", "regs", "shared", "stack", "settings"))
        rows = []
        for row in check(cases, jobs=options.jobs):
            rows.append(row)
            if not options.json:
                print(_table_line(row), flush=True)
    wrong = [row for row in rows if not row.fits]
    totals = {
        "triton": triton.__version__,
        "target": f"sm_{TARGET.arch}",
        "cases": len(cases),
        "kernels": len(rows),
        "do_not_fit": len(wrong),
        "max_registers": max(row.registers for row in rows),
        "max_shared_bytes": max(row.shared_bytes for row in rows),
    }
    if options.json:
        print(json.dumps({"rows": [asdict(row) | {"fits": row.fits} for row in rows], "totals": totals}))
    else:
        print(" ".join(f"{name}={value}" for name, value in totals.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
