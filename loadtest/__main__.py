"""`python -m loadtest COMMAND`: see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from loadtest.bench_command import add_bench_gateway, add_stub_engine
from loadtest.run_command import add_run


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    exit_code: int = options.execute(options)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    """Each command sets `execute`, which gets the options and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest")
    commands = parser.add_subparsers(dest="command", required=True)
    add_bench_gateway(commands)
    add_stub_engine(commands)
    add_run(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
