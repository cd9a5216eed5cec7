"""`python -m loadtest bench-gateway`: see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import uvloop

from loadtest.gateway_bench import Plan, run
from loadtest.systems import Mode, parse_skip, parse_system
from loadtest.table import table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        plan = _plan(options)
    except ValueError as error:
        parser.error(str(error))
    report = uvloop.run(run(plan))
    print(json.dumps(report) if options.json else table(report))
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        systems=tuple(parse_system(text) for text in options.system),
        modes=tuple(Mode(name) for name in options.modes.split(",")),
        concurrencies=tuple(int(number) for number in options.concurrency.split(",")),
        seconds_s=options.seconds,
        slice_s=options.slice_seconds,
        warm_up_s=options.warm_up_seconds,
        timeout_s=options.timeout_seconds,
        max_tokens=options.max_tokens,
        skips=tuple(parse_skip(text) for text in options.skip),
        versions=tuple(_version(text) for text in options.version),
        note=options.note,
    )


def _version(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--version: {text!r} is not name=version")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest")
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench-gateway", help="compare gateways under the same closed-loop load")
    bench.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="name=N,url=U,key=K,model=M[,pid=P]…[,model_paced=M][,url_paced=U]",
        help="one compared system; the one called 'direct' is the baseline",
    )
    bench.add_argument("--skip", action="append", default=[], metavar="SYSTEM=REASON")
    bench.add_argument("--seconds", type=float, default=4.0, help="measured per system and cell")
    bench.add_argument("--slice-seconds", type=float, default=0.5, help="length of one turn")
    bench.add_argument("--warm-up-seconds", type=float, default=0.5, help="per system and cell")
    bench.add_argument("--timeout-seconds", type=float, default=30.0, help="per call")
    bench.add_argument("--concurrency", default="1,16")
    bench.add_argument("--modes", default=",".join(Mode))
    bench.add_argument("--max-tokens", type=int, default=32)
    bench.add_argument("--version", action="append", default=[], metavar="NAME=VERSION", help="of a system")
    bench.add_argument("--note", default="", help="added to the report's note")
    bench.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
