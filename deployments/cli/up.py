"""`sprat up [FILE]`: weights, supervisor, a live view of what is loading, a key, two example calls."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from cluster.config import ClusterConfig, load_config
from cluster.errors import SpratError, StartError
from cluster.router.router import Router
from deployments.cli import example_calls
from deployments.cli.down import remove_left_behind, stop_supervisor
from deployments.cli.status import summary
from deployments.cli.store import opened_store
from deployments.cluster_status import cluster_status
from deployments.preflight import check_machine, check_redis
from deployments.state_folder import StateFolder
from deployments.supervisor import KEEP, config_digest
from deployments.weights.all_pools import ensure_weights

EXAMPLE = Path(__file__).parent.parent / "examples" / "laptop.yaml"
POLL_S = 0.5


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=EXAMPLE)
@click.option(
    "--address", help="Deploy onto this Ray cluster (host:port, or auto) instead of a Ray of our own."
)
@click.option("--timeout-s", default=900.0, show_default=True, help="Longest wait until all pools are ready.")
@click.option("--examples/--no-examples", default=True, help="Make two example calls at the end.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, progress on standard error."
)
@click.pass_obj
def up(
    state: StateFolder, file: Path, *, address: str | None, timeout_s: float, examples: bool, as_json: bool
) -> None:
    """Start the cluster that FILE describes, and wait until it answers."""
    started_s = time.monotonic()
    console = Console(stderr=as_json)
    config = load_config(file, os.environ)
    state.make()
    supervisor: subprocess.Popen[bytes] | None = None
    if not _runs_already(state, config):
        remove_left_behind(state)
        if address is None:
            check_machine(config)
            supervisor = _start_supervisor(state, file, ensure_weights(config))
        else:  # each node fetches the weights of its own replicas
            Router.of(config)  # reads the files of its policies
            check_redis(config)
            supervisor = _start_supervisor(state, file, {}, address)
    try:
        _wait_until_ready(state, supervisor, console, timeout_s)
        key = _fresh_key(state)
        endpoint = str((state.read_supervisor() or {})["endpoint"])
        if supervisor is not None:
            _keep(supervisor)
    except (KeyboardInterrupt, SpratError):
        if supervisor is not None:
            console.print("Stopping what was started …")
            _abandon(supervisor)
        raise
    ready_s = time.monotonic() - started_s
    calls = example_calls.run(endpoint, key, config) if examples else []
    if as_json:
        click.echo(
            json.dumps(
                {"endpoint": endpoint, "api_key": key, "ready_s": round(ready_s, 1), "examples": calls}
            )
        )
        return
    click.echo(example_calls.welcome(endpoint, key, ready_s))
    if calls:
        click.echo("Two example calls through this endpoint:\n" + example_calls.describe(calls))


def _runs_already(state: StateFolder, config: ClusterConfig) -> bool:
    record = state.read_supervisor()
    if record is None:
        return False
    if record.get("config_digest") not in (None, config_digest(config)):
        raise StartError(
            f"another configuration ({record.get('config')}) runs from this state folder. "
            "Stop it first (`sprat down`), or start beside it with another --state and gateway.port."
        )
    return True


def _start_supervisor(
    state: StateFolder, file: Path, weights: dict[str, str], address: str | None = None
) -> subprocess.Popen[bytes]:
    """Detached; the pipe to its standard input is our sign of life until `_keep`."""
    state.forget_dead_supervisor()
    command = [
        *(sys.executable, "-m", "deployments.supervisor"),
        *("--state", str(state.path), "--config", str(file.absolute()), "--weights", json.dumps(weights)),
        *(("--address", address) if address is not None else ()),
    ]
    with state.supervisor_log.open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=_tree()
        )


def _tree() -> Path:
    """Ray hands the working directory's packages to its workers; ours are importable from here."""
    return Path(__file__).resolve().parents[2]


def _keep(supervisor: subprocess.Popen[bytes]) -> None:
    if supervisor.stdin is not None:
        supervisor.stdin.write(KEEP)
        supervisor.stdin.close()


def _abandon(supervisor: subprocess.Popen[bytes]) -> None:
    with suppress(KeyboardInterrupt):
        stop_supervisor(supervisor.pid)
        supervisor.wait(5)


def _wait_until_ready(
    state: StateFolder, supervisor: subprocess.Popen[bytes] | None, console: Console, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    view = _View(console)
    with view:
        while True:
            found = asyncio.run(cluster_status(state))
            view.show(found)
            if found["ready"]:
                return
            _raise_if_failed(state, supervisor, found)
            if time.monotonic() > deadline:
                raise StartError(
                    f"not all pools were ready after {timeout_s:g} s. `sprat logs POOL` and "
                    f"{state.supervisor_log} say why; --timeout-s waits longer."
                )
            time.sleep(POLL_S)


def _raise_if_failed(
    state: StateFolder, supervisor: subprocess.Popen[bytes] | None, found: dict[str, Any]
) -> None:
    ended = supervisor.poll() is not None if supervisor is not None else state.read_supervisor() is None
    if ended or found["phase"] == "failed":
        problem = state.read_observed().get("problem") or _last_line(state.supervisor_log)
        raise StartError(f"the cluster did not start: {problem}")
    if "DEPLOY_FAILED" in found.get("gateway", {}).get("serve", ""):
        raise StartError(f"the gateway did not start: {_sentence(found['gateway']['problem'])}")
    for pool in found["pools"]:
        failed = [replica["detail"] for replica in pool["replicas"] if replica["state"] == "failed"]
        if "DEPLOY_FAILED" in pool["serve"]:
            raise StartError(f"pool {pool['name']!r} did not start: {(failed or [pool['problem']])[0]}")


def _sentence(serve_message: str) -> str:
    """Serve reports a traceback; its last line is our error."""
    lines = [line.strip() for line in serve_message.splitlines() if "Error" in line or "port" in line]
    return (lines or [serve_message])[-1]


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else f"no log in {path}"


def _fresh_key(state: StateFolder) -> str:
    with opened_store(state) as store:
        return store.keys.create(tenant="default", name=time.strftime("up-%Y%m%dT%H%M%S"))


class _View:
    """A live table on a terminal; a line per change where output goes to a file."""

    def __init__(self, console: Console) -> None:
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )
        self._console = console
        self._shown = ""
        self._started_s = time.monotonic()

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()

    def __exit__(self, *_exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, found: dict[str, Any]) -> None:
        if self._live is not None:
            self._live.update(summary(found))
            return
        pools = "; ".join(
            f"{pool['name']} {pool['ready']}/{pool['target']} {_loading(pool)}".strip()
            for pool in found["pools"]
        )
        line = f"{found['phase']}{': ' if pools else ''}{pools}"
        if line != self._shown:
            self._shown = line
            self._console.print(
                f"[{time.monotonic() - self._started_s:5.1f} s] {line}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _loading(pool: dict[str, Any]) -> str:
    details = [
        replica["detail"] or replica["state"] for replica in pool["replicas"] if replica["state"] != "ready"
    ]
    return f"({', '.join(details)})" if details else ""
