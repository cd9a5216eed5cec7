"""Measures cells: every system on the same tensors, checked before it is timed, under one clock.

All systems run in this process. Rivals need stand-ins for their packages only while their files load
(`rivals/files.py`), so there is no clash of names to keep them apart for; and one process means one
allocator, one CUDA context and one clock rate, and replays that take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.benchmark.cases import Case, CaseBuilder, Run
from kernels.benchmark.correctness import Correctness, Truth
from kernels.benchmark.grid import Cell
from kernels.benchmark.limits import MachineRates, Work, limit_us, work_of
from kernels.benchmark.rivals import System
from kernels.benchmark.rivals.files import Unavailable
from kernels.benchmark.rows import Row, RowsFile
from kernels.benchmark.timing import Clock, Recording, Timing

LOOP_SETS = 4
"""Weight sets in a recording of a loop over adapters, whose graph has hundreds of nodes per op."""


class DeviceLost(Exception):
    """The device answers no more (a kernel read or wrote out of bounds). The rows so far are kept."""


@dataclass(frozen=True)
class Checked:
    """A system on a case: right or not, the same bits each time or not, and ready to be timed."""

    correctness: Correctness
    deterministic: bool
    cold: Recording
    warm: Recording


@dataclass
class Benchmark:
    """`opened`: system name → the system, or why there is none."""

    builder: CaseBuilder
    clock: Clock
    rates: MachineRates | None
    """None where nothing is timed."""
    opened: Mapping[str, System | Unavailable]
    rows: RowsFile
    facts: Mapping[str, Any]
    """Goes into every row: device and versions."""
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._base_us: dict[tuple[int, str, int], float | None] = {}

    def measure(self, cells: Sequence[Cell], stop_s: float) -> int:
        """In order, none begun after `stop_s` (of `time.monotonic`); how many cells are left.

        Raises:
            DeviceLost: nothing more can be measured by this process.
        """
        todo = [cell for cell in cells if self._lacking(cell)]
        for number, cell in enumerate(todo):
            if time.monotonic() > stop_s:
                return len(todo) - number
            begin_s = time.monotonic()
            self._measure_cell(cell)
            self.say(f"{number + 1}/{len(todo)} {cell}: {time.monotonic() - begin_s:.1f} s")
        return 0

    def _measure_cell(self, cell: Cell) -> None:
        case = self.builder.build(cell)
        truth = Truth(case)
        checked: dict[str, Checked] = {}
        for name, system in self._lacking(cell).items():
            if isinstance(system, Unavailable):
                self._add(case, name, {"skipped": str(system), "absent": True})
                continue
            try:
                checked[name] = self._check(case, truth, system)
            except Unavailable as reason:
                self._add(case, name, {"skipped": str(reason)})
            except Exception as error:  # whatever another project's code raises: the others go on
                self._add(case, name, {"failed": f"{type(error).__name__}: {error}"})
                self._require_device()
        hot = [tensor for linear in case.linears for tensor in (linear.x, linear.y)]
        cold = self.clock.time({name: each.cold for name, each in checked.items()}, hot)
        warm = self.clock.time({name: each.warm for name, each in checked.items()}, None)
        for name, each in checked.items():
            self._add(case, name, self._result(case, each, cold.get(name), warm.get(name)))

    def _lacking(self, cell: Cell) -> dict[str, System | Unavailable]:
        return {
            name: system
            for name, system in self.opened.items()
            if self.rows.lacks(cell, name, here=not isinstance(system, Unavailable))
        }

    def _check(self, case: Case, truth: Truth, system: System) -> Checked:
        """Correctness and repeats are of what is timed: the replay of a recording, not the first call."""
        run = system.prepare(case)
        sets = min(LOOP_SETS, case.sets) if system.looping else case.sets
        for index in range(sets):
            run(index)  # compiles, looks up settings, copies pointers: nothing that may be captured
        once = self.clock.record([partial(run, 0)])
        outputs = _replayed(case, once)
        same = torch.ones((), dtype=torch.bool, device=case.device)
        for _ in range(self.clock.identical_replays - 1):
            again = _replayed(case, once)
            for first, output in zip(outputs, again, strict=True):
                same &= (first == output).all()
        return Checked(
            truth.check(outputs),
            bool(same),
            cold=self.clock.record(_ops(run, range(sets))),
            warm=self.clock.record(_ops(run, [0] * sets)),
        )

    def _require_device(self) -> None:
        if self.builder.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                raise DeviceLost(f"{error}. The rows so far are kept: run again with --resume") from error

    def _result(self, case: Case, checked: Checked, cold: Timing | None, warm: Timing | None) -> Row:
        result: Row = {
            "exact": checked.correctness.exact,
            "error": checked.correctness.error,
            "base_rows_exact": checked.correctness.base_rows_exact,
            "deterministic": checked.deterministic,
            "identical_replays": self.clock.identical_replays,
            "sets": len(checked.cold.ops),
        }
        nodes = checked.warm.nodes
        if nodes is not None:
            result["graph_nodes"] = nodes.nodes / len(checked.warm.ops)
            result["programs"] = nodes.programs / len(checked.warm.ops)
        if cold is not None and self.rates is not None:
            work = work_of(case.cell, case.linears[0].x.element_size())
            result |= _figures(work, self.rates, cold)
            base_us = self._base(case)
            result["base_us"] = base_us
            result["lora_over_base"] = cold.us_p50 / base_us if base_us else None
            if nodes is not None and self.clock.node_us is not None:
                floor_us = max(result["limit_us"], result["graph_nodes"] * self.clock.node_us)
                result["fraction_of_limit_with_launches"] = floor_us / cold.us_p50
        if warm is not None:
            result["us_warm"] = warm.us_p50
        return result

    def _base(self, case: Case) -> float | None:
        """Time of x·Wᵀ of the same linears, measured once per width and batch."""
        key = (case.cell.hidden, case.cell.projection, case.cell.tokens)
        if key not in self._base_us:
            sets = 8 if case.cell.path != "prefill" else 1  # 8 of the smallest are more than the L2 holds
            product = _base_product(case, sets)
            product(0)
            recording = self.clock.record(_ops(product, range(sets)))
            timed = self.clock.time({"base": recording}, [linear.x for linear in case.linears])
            self._base_us[key] = timed["base"].us_p50 if timed else None
        return self._base_us[key]

    def _add(self, case: Case, system: str, result: Row) -> None:
        unmeasured = dict.fromkeys(("us", "gb_s", "fraction_of_limit", "exact"))
        self.rows.add(
            {
                "question": case.cell.question,
                **case.cell.shape,
                "system": system,
                **unmeasured,
                **result,
                **self.facts,
            }
        )


def compile_ahead(
    builder: CaseBuilder, cells: Sequence[Cell], opened: Mapping[str, System | Unavailable]
) -> None:
    """Run everything once: Triton keeps what it compiles on disk, and compiling takes most of a short run."""
    for cell in cells:
        case = builder.build(cell)
        for system in opened.values():
            # A run says which systems are absent or fail.
            with suppress(Exception):
                if not isinstance(system, Unavailable) and not system.looping:
                    system.prepare(case)(0)


def _ops(run: Run, sets: Sequence[int]) -> list[Callable[[], None]]:
    return [partial(run, index) for index in sets]


def _replayed(case: Case, once: Recording) -> list[torch.Tensor]:
    case.reset()
    once.replay()
    return case.outputs()


def _base_product(case: Case, sets: int) -> Run:
    weights = [
        [
            torch.randn(
                linear.linear.width_out, linear.linear.width_in, dtype=linear.x.dtype, device=case.device
            )
            for _ in range(sets)
        ]
        for linear in case.linears
    ]

    def run(index: int) -> None:
        for linear, sets_of_linear in zip(case.linears, weights, strict=True):
            torch.mm(linear.x, sets_of_linear[index].T, out=linear.y)

    return run


def _figures(work: Work, rates: MachineRates, timing: Timing) -> Row:
    return {
        "us": timing.us_p50,
        "us_p20": timing.us_p20,
        "us_p80": timing.us_p80,
        "replays": timing.replays,
        "gb_s": work.bytes_min / timing.us_p50 / 1e3,
        "limit_us": limit_us(work, rates),
        "fraction_of_limit": limit_us(work, rates) / timing.us_p50,
    }
