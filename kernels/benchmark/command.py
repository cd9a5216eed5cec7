"""The verbs of `python -m kernels.benchmark`: without one it measures."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark import plots, tune_ours, tune_vllm
from kernels.benchmark.cases import CaseBuilder
from kernels.benchmark.grid import GRIDS, Cell
from kernels.benchmark.limits import measure_rates
from kernels.benchmark.machine import machine_facts
from kernels.benchmark.report import lines, summary
from kernels.benchmark.rivals import OURS, PACKAGES, SYSTEMS, Sources, open_systems
from kernels.benchmark.rivals.files import Unavailable
from kernels.benchmark.rivals.vllm_kernels import PACKAGE as VLLM
from kernels.benchmark.rows import OtherMachine, RowsFile
from kernels.benchmark.run import Benchmark, DeviceLost, compile_ahead
from kernels.benchmark.timing import Clock, CudaGraphClock, NoClock, WallClock

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = Path(__file__).parents[1] / "settings"


class WrongUse(Exception):
    """The message says what to do instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a cell of ours is wrong or failed; 2 with a sentence on standard error if nothing
    could be measured."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except (WrongUse, Unavailable, OtherMachine, DeviceLost) as error:
        print(f"kernels.benchmark: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m kernels.benchmark", description=__doc__)
    parser.set_defaults(verb=_measure)
    _add_choice(parser)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no cell after this long")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep rows here; measure what is missing")
    parser.add_argument("--save", action="store_true", help="write kernels/results/DATE-DEVICE.json")
    parser.add_argument("--json", action="store_true", help="everything as one object on standard output")
    verbs = parser.add_subparsers(title="other verbs", metavar="")

    compiles = verbs.add_parser("compile", help="fill Triton's cache with what a run needs, in parallel")
    compiles.set_defaults(verb=_compile)
    _add_choice(compiles)
    compiles.add_argument("--processes", type=int, default=8)
    compiles.add_argument("--search", action="store_true", help="for tune-ours: all settings of ours instead")
    compiles.add_argument("--part", type=int, help=argparse.SUPPRESS)

    collect = verbs.add_parser("rivals", help="copy the rivals' files for a machine that can fetch nothing")
    collect.set_defaults(verb=_collect)
    collect.add_argument("--out", type=Path, required=True)
    _add_sources(collect)

    for name, tune in (("tune-vllm", tune_vllm), ("tune-ours", tune_ours)):
        tuning = verbs.add_parser(name, help=tune.__doc__.splitlines()[0] if tune.__doc__ else None)
        tuning.set_defaults(verb=_tune_vllm if tune is tune_vllm else _tune_ours)
        _add_choice(tuning)
        tuning.add_argument("--minutes", type=float, default=math.inf)
        tuning.add_argument("--out", type=Path, default=SETTINGS, help="folder of the settings files")

    draw = verbs.add_parser("plots", help="one picture per question from a results file")
    draw.set_defaults(verb=_plots)
    draw.add_argument("results", type=Path)
    draw.add_argument("--out", type=Path, required=True)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu", "interpreter"), default="cuda")
    parser.add_argument("--grid", choices=("core", "full"), default="full", help="on cuda")
    parser.add_argument(
        "--only", default="", metavar="NAME,…", help="questions, paths, projections, systems: of each, these"
    )
    _add_sources(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    for package in ("vllm", "sglang"):
        parser.add_argument(f"--{package}-src", type=Path, help=f"folder that {package}/ is in")


def _measure(options: argparse.Namespace) -> int:
    """Measure, and print what was found."""
    devices = [options.device]
    if options.device == "cuda" and (not options.only or "cpu" in options.only.split(",")):
        devices.append("cpu")  # a full run has all fields, those of the CPU's serving path too
    sources = _sources(options)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    stop_s = time.monotonic() + 60 * options.minutes
    machines = {device: _clock_and_builder(device) for device in devices}
    facts_of = {device: machine_facts(builder.device) for device, (_, builder) in machines.items()}
    facts = facts_of[options.device]
    rows = RowsFile(options.resume, {key: facts[key] for key in ("device", "torch", "triton")})
    rates, left = {}, 0
    for device in devices:
        cells, names = _chosen(options, device)
        if cells:
            benchmark = _benchmark(device, *machines[device], facts_of[device], names, sources, rows, date)
            left += benchmark.measure(cells, stop_s)
            rates[device] = benchmark.rates and vars(benchmark.rates)
    result: dict[str, Any] = {
        "device": facts["device"],
        "date": date,
        "versions": {**facts, **sources.versions()},
        "rates": rates,
        "grid": _grid_name(options, options.device),
        "only": options.only,
        "cells_left": left,
        "rows": rows.rows,
        **summary(rows.rows),
    }
    if options.save:
        _say(f"wrote {_save(result)}")
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return int(bool(result["not_exact"]) or OURS in result["failed"])


def _benchmark(  # noqa: PLR0917 (wiring)
    device: str,
    clock: Clock,
    builder: CaseBuilder,
    facts: dict[str, Any],
    names: Sequence[str],
    sources: Sources,
    rows: RowsFile,
    date: str,
) -> Benchmark:
    rates = None if isinstance(clock, NoClock) else measure_rates(builder.device, builder.dtype)
    if rates:
        copy_gb_s, gflop_s = rates.copy_bytes_per_s / 1e9, rates.matmul_flops_per_s / 1e9
        _say(f"{device}: copy {copy_gb_s:.0f} GB/s, matrix product {gflop_s:.0f} GFLOP/s")
    opened = open_systems(names, _kind(device), sources)
    for name, system in opened.items():
        if isinstance(system, Unavailable):
            _say(f"without {name}: {system}")
    row_facts = {
        **{key: facts[key] for key in ("device", "driver", "torch", "triton")},
        "date": date,
        "timing": clock.name,
    }
    return Benchmark(builder, clock, rates, opened, rows, row_facts, _say)


def _compile(options: argparse.Namespace) -> int:
    """All processes of it, or as one of them its part of the cells."""
    _require_gpu(options)
    if options.part is not None:
        _, builder = _clock_and_builder(options.device)
        cells, names = _chosen(options, options.device)
        builder.sets = 1
        part = cells[options.part :: options.processes]
        if options.search:
            tune_ours.compile_search_space(builder, part)
        else:
            compile_ahead(builder, part, open_systems(names, _kind(options.device), _sources(options)))
        return 0
    command = [sys.executable, "-m", "kernels.benchmark", *sys.argv[1:]]
    parts = [
        subprocess.Popen([*command, "--part", str(part)], stdout=sys.stderr)
        for part in range(options.processes)
    ]
    return max([abs(part.wait()) for part in parts])


def _collect(options: argparse.Namespace) -> int:
    sources = _sources(options)
    for package in PACKAGES:
        sources.of(package).copy_to(options.out)
    print(f"{options.out}: {', '.join(f'{name} {version}' for name, version in sources.versions().items())}")
    return 0


def _tune_vllm(options: argparse.Namespace) -> int:
    _require_gpu(options)
    clock, builder = _clock_and_builder(options.device)
    cells, _ = _chosen(options, options.device)
    source = _sources(options).of(VLLM)
    folder = options.out / "vllm"
    tune_vllm.tune(builder, clock, source, cells, seconds=60 * options.minutes, folder=folder, say=_say)
    return 0


def _tune_ours(options: argparse.Namespace) -> int:
    _require_gpu(options)
    clock, builder = _clock_and_builder(options.device)
    cells, _ = _chosen(options, options.device)
    tune_ours.tune(builder, clock, cells, seconds=60 * options.minutes, folder=options.out, say=_say)
    return 0


def _plots(options: argparse.Namespace) -> int:
    result = json.loads(options.results.read_text(encoding="utf-8"))
    for path in plots.draw(result, options.out):
        print(path)
    return 0


def _require_gpu(options: argparse.Namespace) -> None:
    if options.device != "cuda":
        raise WrongUse("settings belong to a GPU: leave out --device")


def _clock_and_builder(device: str) -> tuple[Clock, CaseBuilder]:
    if device == "cuda":
        if not torch.cuda.is_available():
            raise WrongUse(
                "no CUDA device here: use --device cpu, or --device interpreter to check results only"
            )
        gpu = torch.device("cuda", torch.cuda.current_device())
        return CudaGraphClock(gpu), CaseBuilder(gpu, torch.bfloat16, CudaGraphClock.sets)
    cpu = torch.device("cpu")
    if device == "cpu":
        return WallClock(), CaseBuilder(cpu, torch.float32, WallClock.sets)
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise WrongUse("set TRITON_INTERPRET=1: Triton was imported without it")
    # The interpreter computes wrong products of bfloat16 numbers (KERNELS.md section 8).
    return NoClock(), CaseBuilder(cpu, torch.float16, NoClock.sets, interpreted=True)


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def _grid_name(options: argparse.Namespace, device: str) -> str:
    return str(options.grid if device == "cuda" else device)


def _chosen(options: argparse.Namespace, device: str) -> tuple[list[Cell], list[str]]:
    """Cells and systems that `--only` leaves on a device."""
    wanted = {name for name in options.only.split(",") if name}
    every_cell = [cell for grid in GRIDS.values() for cell in grid]
    known = {
        name: {getattr(cell, name) for cell in every_cell} for name in ("question", "path", "projection")
    }
    every_name = set().union(*SYSTEMS.values(), *known.values())
    if wanted - every_name:
        unknown, names = ", ".join(sorted(wanted - every_name)), ", ".join(sorted(every_name))
        raise WrongUse(f"--only {unknown}: not one of {names}")
    cells = list(GRIDS[_grid_name(options, device)])
    for attribute, possible in known.items():
        if wanted & possible:
            cells = [cell for cell in cells if getattr(cell, attribute) in wanted]
    systems = SYSTEMS[_kind(device)]
    return cells, [name for name in systems if name in wanted] or list(systems)


def _sources(options: argparse.Namespace) -> Sources:
    given = {"vllm": options.vllm_src, "sglang": options.sglang_src}
    return Sources({name: path for name, path in given.items() if path is not None})


def _save(result: dict[str, Any]) -> Path:
    """One file per full run, a line per row."""
    device = re.sub(r"[^a-z0-9]+", "-", result["device"].lower().removeprefix("nvidia ")).strip("-")
    path = RESULTS / f"{result['date'][:10]}-{device}.json"
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    rest = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
    path.write_text(f'{rest[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    return path


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
