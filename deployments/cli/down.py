"""`sprat down`: stop the cluster of this state folder, all of it and only it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress

import click
import psutil

from cluster.errors import StartError
from deployments.ray_cluster import remove_applications
from deployments.state_folder import StateFolder

STOP_TIMEOUT_S = 120.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def down(state: StateFolder, *, as_json: bool) -> None:
    """Stop the cluster: running calls end first, then engines, Ray and Valkey."""
    record = state.read_supervisor()
    if record is None:
        if remove_left_behind(state):
            click.echo(json.dumps({"stopped": True}) if as_json else "Removed what a killed supervisor left.")
            return
        state.forget_dead_supervisor()
        click.echo(json.dumps({"stopped": False}) if as_json else "Nothing runs from this state folder.")
        return
    stop_supervisor(record["pid"])
    click.echo(json.dumps({"stopped": True}) if as_json else "Stopped.")


def remove_left_behind(state: StateFolder) -> bool:
    """Applications of a supervisor that was killed, on a Ray that it had joined; those on a Ray of its own
    died with it. Whether there were some. Raises StartError."""
    record = state.last_record()
    if state.read_supervisor() is not None or not record.get("joined"):
        return False
    remove_applications(record["ray_address"], record["applications"])
    state.forget_dead_supervisor()
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop_supervisor(pid: int) -> None:
    """SIGTERM, then wait. Raises StartError when something is still there after the timeout."""
    try:
        supervisor = psutil.Process(pid)
        children = supervisor.children(recursive=True)
        os.kill(pid, signal.SIGTERM)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with click.progressbar(
        length=int(STOP_TIMEOUT_S), label="Stopping", show_eta=False, file=sys.stderr
    ) as bar:
        while time.monotonic() < deadline and _runs(supervisor):
            time.sleep(1)
            bar.update(1)
    left = [child for child in children if _runs(child)]
    if _runs(supervisor):
        supervisor.kill()  # its children die with it
        _, left = psutil.wait_procs(children, timeout=10)
    for child in left:
        # A worker that Ray left behind; it was a child of our supervisor, so it is ours.
        with suppress(psutil.NoSuchProcess):
            child.kill()
    _, left = psutil.wait_procs(left, timeout=5)
    if left:
        raise StartError(
            f"these processes did not end: {', '.join(str(child.pid) for child in left)}. Kill them by hand."
        )
