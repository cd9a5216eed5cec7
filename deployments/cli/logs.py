"""`sprat logs [PART]`: what the supervisor, Valkey, Ray, the gateway or a pool wrote."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path

import click

from deployments.state_folder import StateFolder

FOLLOW_PERIOD_S = 0.5


@click.command()
@click.argument("part", default="supervisor")
@click.option("-n", "--lines", default=50, show_default=True, help="Lines of each file.")
@click.option("-f", "--follow", is_flag=True, help="Go on as they grow.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output: file → last lines."
)
@click.pass_obj
def logs(state: StateFolder, part: str, *, lines: int, follow: bool, as_json: bool) -> None:
    """Show logs of PART: supervisor, valkey, ray, gateway or the name of a pool."""
    files = log_files(state, part)
    if not files:
        known = "supervisor, valkey, ray, gateway, or a pool's name"
        raise click.UsageError(f"there is no log of {part!r} in {state.logs}; parts are {known}")
    tails = {str(file): _tail(file, lines) for file in files}
    if as_json:
        click.echo(json.dumps(tails))
        return
    for name, tail in tails.items():
        click.echo(f"==> {name} <==")
        for line in tail:
            click.echo(line)
    if follow:
        _follow(files)


def log_files(state: StateFolder, part: str) -> list[Path]:
    """Live files first; after a stop the copies in the state folder."""
    for own in (state.logs / f"{part}.log", state.path / part / f"{part}.log"):
        if own.exists():
            return [own]
    for folder in (state.ray_folder / "session_latest" / "logs", state.logs / "ray"):
        if folder.exists():
            names = ["gcs_server.*", "raylet.*", "serve/controller_*.log"]
            if part != "ray":
                names = [f"serve/replica_{part}_*.log", f"serve/replica_pool-{part}_*.log"]
            found = [file for name in names for file in sorted(folder.glob(name))]
            found += _engine_output(folder, part)
            if found:
                return found
    return []


def _engine_output(folder: Path, pool: str) -> list[Path]:
    """What vLLM itself prints: Ray keeps it per worker and writes the actor's name into the first lines."""
    mark = f":actor_name:ServeReplica:pool-{pool}:".encode()
    printed = sorted([*folder.glob("worker-*.out"), *folder.glob("worker-*.err")])
    return [file for file in printed if mark in _head(file)]


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4096)


def _tail(file: Path, lines: int) -> list[str]:
    with file.open(errors="replace") as opened:
        return [line.rstrip("\n") for line in deque(opened, maxlen=lines)]


def _follow(files: list[Path]) -> None:
    opened = [file.open(errors="replace") for file in files]
    for each in opened:
        each.seek(0, 2)
    while True:
        for each in opened:
            for line in each:
                click.echo(line, nl=False)
        time.sleep(FOLLOW_PERIOD_S)
