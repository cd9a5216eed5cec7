"""`sprat bench …`: measures parts of sprat; `deployments/bench` has the work."""

from __future__ import annotations

import json
from typing import Any

import click

from deployments.bench.gateway_systems.names import DEFAULT_SYSTEMS, SYSTEMS
from deployments.cli.bench_placement import placement
from deployments.cli.tables import print_table


@click.group()
def bench() -> None:
    """Measure parts of sprat."""


bench.add_command(placement)


@bench.command()
@click.option(
    "--systems", default=",".join(DEFAULT_SYSTEMS), show_default=True, help=f"Of {', '.join(SYSTEMS)}."
)
@click.option("--seconds", default=4.0, show_default=True, help="Measured per system and cell.")
@click.option("--concurrency", default="1,16,64,256", show_default=True)
@click.option("--modes", default="unary,stream,stream-paced", show_default=True)
@click.option(
    "--streams", default=0, show_default=True, help="Also so many paced streams at a time, e.g. 500."
)
@click.option(
    "--pin/--no-pin", default=True, show_default=True, help="Systems on one core, the rest on others."
)
@click.option("--save", is_flag=True, help="Write loadtest/results/DATE-gateway.json and .svg.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def gateway(
    *,
    systems: str,
    seconds: float,
    concurrency: str,
    modes: str,
    streams: int,
    pin: bool,
    save: bool,
    as_json: bool,
) -> None:
    """What a gateway adds to an engine: sprat beside others, before the same stub engine."""
    from deployments.bench.gateway_bench import Load, run_gateway_bench

    chosen = [name for name in systems.split(",") if name]
    unknown = sorted(set(chosen) - set(SYSTEMS))
    if unknown or not chosen:
        raise click.UsageError(f"unknown system {', '.join(unknown)}; choose of {', '.join(SYSTEMS)}")
    load = Load(seconds, concurrency, modes, streams, save=save, as_json=as_json)
    code = run_gateway_bench(chosen, load, pin=pin, say=lambda line: click.echo(line, err=True))
    if code != 0:
        raise SystemExit(code)


OVERLOAD_SYSTEMS = ("sprat", "fifo", "ray_capacity_queue")


@bench.command()
@click.option("--systems", default=",".join(OVERLOAD_SYSTEMS), show_default=True, help="For the overload.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=12.0,
    show_default=True,
    help="How long requests arrive per system.",
)
@click.option("--seed", default=1, show_default=True, help="Of the overload's requests.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def scheduler(*, systems: str, seconds: float, seed: int, as_json: bool) -> None:
    """What a decision of the scheduler costs, and what it is worth at twice the capacity."""
    from deployments.bench.overload_main import SYSTEMS as KNOWN
    from deployments.bench.scheduler_bench import run_scheduler_bench

    chosen = [name for name in systems.split(",") if name]
    unknown = sorted(set(chosen) - set(KNOWN))
    if unknown:
        raise click.UsageError(f"unknown system {', '.join(unknown)}; choose of {', '.join(KNOWN)}")
    measured = run_scheduler_bench(
        chosen, seconds=seconds, seed=seed, say=lambda line: click.echo(line, err=True)
    )
    if as_json:
        click.echo(json.dumps(measured))
        return
    print_scheduler(measured)


def print_scheduler(measured: dict[str, Any]) -> None:
    """For people."""

    def us(cost: dict[str, float]) -> list[str]:
        return [f"{cost[field]:,.0f}" for field in ("median", "fastest_burst", "cpu")]

    costs = [
        *([f"admit, {row['case']}", *us(row["admit_us"])] for row in measured["cases"]),
        *([f"settle, {row['case']}", *us(row["settle_us"])] for row in measured["cases"]),
        *([name, *us(cost)] for name, cost in measured["other_us"].items()),
    ]
    click.echo("Server time, us per call")
    print_table(("call, replicas", "median", "fastest burst", "CPU"), costs)

    clients = [
        [
            *(str(row[field]) for field in ("processes", "concurrency", "pairs_per_s")),
            *(f"{row[field]:.2f}" for field in ("admit_p50_ms", "admit_p99_ms", "server_busy")),
        ]
        for row in measured["rates"]
    ]
    click.echo("Clients; a pair is one admit and its settle")
    columns = ("processes", "calls each", "pairs/s", "admit p50 ms", "admit p99 ms", "server busy")
    print_table(columns, clients)

    overload = [
        [
            name,
            *(_share(row[field]) for field in ("interactive_attainment", "jain")),
            *(str(row[field]) for field in ("started_late", "served", "refused", "abandoned", "failed")),
            _share(row["utilisation"]),
        ]
        for name, row in measured["overload"].items()
    ]
    click.echo("Twice as much work as the slots can do")
    endings = ("served", "refused", "abandoned", "failed")
    print_table(("system", "interactive in time", "Jain", "started late", *endings, "slots busy"), overload)


def _share(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"
