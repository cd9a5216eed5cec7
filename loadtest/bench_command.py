"""`python -m loadtest bench-gateway` and `stub-engine`: their options."""

from __future__ import annotations

import argparse
import json

import uvloop

from loadtest import stub_engine
from loadtest.gateway_bench import Plan, log, run
from loadtest.saved_report import save
from loadtest.systems import Mode, parse_skip, parse_system
from loadtest.table import table


def add_bench_gateway(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser("bench-gateway", help="compare gateways under the same closed-loop load")
    bench.add_argument(
        "--system",
        action="append",
        required=True,
        metavar="name=N,url=U,key=K,model=M[,pid=P]…[,store_pid=P]…[,pause_pid=P]…[,model_paced=M][,url_paced=U]",
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
    bench.add_argument("--cores", type=int, default=0, help="of the machine, if this process may use fewer")
    bench.add_argument("--pinning", default="", help="who runs on which cores, for the report")
    bench.add_argument(
        "--idle-cpu-percent", action="append", default=[], metavar="SYSTEM=PERCENT", help="for the report"
    )
    bench.add_argument("--note", default="", help="added to the report's note")
    bench.add_argument("--streams", type=int, default=0, help="also so many paced streams at a time")
    bench.add_argument("--streams-systems", default="", metavar="A,B", help="for --streams; default: all")
    bench.add_argument("--save", action="store_true", help="write results/DATE-gateway.json and .svg")
    bench.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    bench.set_defaults(parser=bench, execute=_bench_gateway)


def add_stub_engine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stub = commands.add_parser("stub-engine", help="an engine that costs almost nothing")
    stub.add_argument("--port", type=int, required=True)
    stub.set_defaults(parser=stub, execute=_stub_engine)


def _bench_gateway(options: argparse.Namespace) -> int:
    try:
        plan = _plan(options)
    except ValueError as error:
        options.parser.error(str(error))
    report = uvloop.run(run(plan))
    if options.save:
        for file in save(report):
            log(f"written: {file}")
    print(json.dumps(report) if options.json else table(report))
    return 0


def _stub_engine(options: argparse.Namespace) -> int:
    stub_engine.run(options.port)
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
        cores=options.cores,
        pinning=options.pinning,
        streams=options.streams,
        streams_systems=tuple(name for name in options.streams_systems.split(",") if name),
        idle_cpu_percent=tuple(_idle(text) for text in options.idle_cpu_percent),
        note=options.note,
    )


def _idle(text: str) -> tuple[str, float]:
    name, _, percent = text.partition("=")
    try:
        return name, float(percent)
    except ValueError:
        raise ValueError(f"--idle-cpu-percent: {text!r} is not system=percent") from None


def _version(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--version: {text!r} is not name=version")
    return name, value
