"""`sprat bench …`: `gateway` starts what is measured and runs `python -m loadtest` (which knows HTTP only);
`scheduler` runs `deployments.bench`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil

from deployments.cli.tables import print_table
from deployments.cluster_status import cluster_status
from deployments.free_port import free_port
from deployments.state_folder import StateFolder

BENCH_CONFIG = Path(__file__).parent.parent / "examples" / "bench.yaml"
SYSTEMS = ("direct", "sprat", "sprat-2", "vllm-router", "litellm", "ray-serve")
BUILT = ("direct", "sprat")


@click.group()
def bench() -> None:
    """Measure parts of sprat."""


@bench.command()
@click.option("--systems", default=",".join(BUILT), show_default=True, help=f"Of {', '.join(SYSTEMS)}.")
@click.option("--seconds", default=4.0, show_default=True, help="Measured per system and cell.")
@click.option("--concurrency", default="1,16", show_default=True)
@click.option("--modes", default="unary,stream,stream-paced", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def gateway(*, systems: str, seconds: float, concurrency: str, modes: str, as_json: bool) -> None:
    """What the gateway adds to an engine, in a cluster of its own with simulated engines."""
    chosen = systems.split(",")
    unknown = sorted(set(chosen) - set(SYSTEMS))
    if unknown:
        raise click.UsageError(f"unknown system {', '.join(unknown)}; choose of {', '.join(SYSTEMS)}")
    with _throw_away_cluster() as (state, started):
        flags = [
            flag
            for name in chosen
            for flag in (
                ("--system", _system(name, state, started))
                if name in BUILT
                else ("--skip", f"{name}=not wired into this bench yet")
            )
        ]
        command = [
            *(sys.executable, "-m", "loadtest", "bench-gateway", *flags),
            *("--seconds", str(seconds), "--concurrency", concurrency, "--modes", modes),
            *("--note", "simulated engines; rules policy, one Redis admit and one settle per call"),
            *(["--json"] if as_json else []),
        ]
        finished = subprocess.run(command, check=False)
    if finished.returncode != 0:
        raise SystemExit(finished.returncode)


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


def _system(name: str, state: StateFolder, started: dict[str, Any]) -> str:
    pools = {pool["name"]: pool for pool in asyncio.run(cluster_status(state))["pools"]}
    engines = {pool: pools[pool]["replicas"][0] for pool in ("at-once", "paced")}
    engine_pids = [str(engine["pid"]) for engine in engines.values()]
    if name == "direct":
        fields = {
            "url": f"http://{engines['at-once']['address']}",
            "url_paced": f"http://{engines['paced']['address']}",
            "key": state.secrets().gateway_token,
        }
        pids: list[str] = engine_pids
    else:
        fields = {"url": started["endpoint"].removesuffix("/v1"), "key": started["api_key"]}
        pids = [*engine_pids, str(_listener(started["endpoint"])), str(_valkey(state))]
    fields |= {"name": name, "model": "at-once", "model_paced": "paced"}
    return ",".join([f"{key}={value}" for key, value in fields.items()] + [f"pid={pid}" for pid in pids])


def _listener(endpoint: str) -> int:
    port = int(endpoint.split(":")[2].split("/", maxsplit=1)[0])
    return next(
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
    )


def _valkey(state: StateFolder) -> int:
    record = state.read_supervisor()
    children = psutil.Process(record["pid"]).children() if record else []
    return next(child.pid for child in children if "valkey" in child.name() or "redis" in child.name())


@contextmanager
def _throw_away_cluster() -> Iterator[tuple[StateFolder, dict[str, Any]]]:
    """A cluster in a state folder and on a port of its own; gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as folder:
        state = StateFolder(Path(folder))
        sprat = [sys.executable, "-m", "deployments.cli.main", "--state", folder]
        environment = os.environ | {"SPRAT__GATEWAY__PORT": str(free_port())}
        try:
            up = subprocess.run(
                [*sprat, "up", str(BENCH_CONFIG), "--no-examples", "--json"],
                stdout=subprocess.PIPE,
                env=environment,
                check=False,
            )
            if up.returncode != 0:
                raise SystemExit(up.returncode)
            yield state, json.loads(up.stdout)
        finally:
            subprocess.run([*sprat, "down"], check=False, stdout=sys.stderr)
