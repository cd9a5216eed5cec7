"""The verbs of `python -m kernels.benchmark`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark.cases import CaseBuilder
from kernels.benchmark.grid import GRIDS, Cell
from kernels.benchmark.limits import measure_rates
from kernels.benchmark.machine import machine_facts
from kernels.benchmark.report import summary, table
from kernels.benchmark.rivals import PACKAGES, SYSTEMS, Sources, open_systems
from kernels.benchmark.rivals.files import Unavailable
from kernels.benchmark.rows import OtherMachine, RowsFile
from kernels.benchmark.run import Benchmark, DeviceLost
from kernels.benchmark.timing import Clock, CudaGraphClock, NoClock, WallClock

RESULTS = Path(__file__).parents[1] / "results"


class WrongUse(Exception):
    """The message says what to do instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if a cell of ours is wrong or failed; 2 with a sentence on standard error otherwise."""
    options = _parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = options.run
    try:
        return verb(options)
    except (WrongUse, Unavailable, OtherMachine, DeviceLost) as error:
        print(f"kernels.benchmark: {error}", file=sys.stderr)
        return 2


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
