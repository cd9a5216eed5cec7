"""`sprat loadtest …`: `python -m loadtest run …` (which knows HTTP only) against the running cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from cluster.errors import StartError
from deployments.cli.store import opened_store
from deployments.state_folder import StateFolder

KEY_VARIABLE = "OPENAI_API_KEY"
"""Where `python -m loadtest run` looks for the key: in the environment nobody else on the machine sees it."""

TENANT = "loadtest"


@dataclass(frozen=True, slots=True)
class Target:
    """`key` is None where the caller's options or environment name one."""

    endpoint: str
    key: str | None


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.option("--endpoint", help="Another server than the cluster of the state folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def loadtest(state: StateFolder, arguments: tuple[str, ...], *, endpoint: str | None, as_json: bool) -> None:
    """Load on the running cluster: traces, arrival processes, SLO, report."""
    command = [sys.executable, "-m", "loadtest", "run", *arguments, *(["--json"] if as_json else [])]
    if {"-h", "--help"} & set(arguments):
        raise SystemExit(subprocess.run(command, check=False).returncode)
    with _target(state, endpoint, brings_key=_brings_key(arguments)) as target:
        environment = os.environ | ({KEY_VARIABLE: target.key} if target.key else {})
        code = _run([*command, "--endpoint", target.endpoint], environment)
    raise SystemExit(code)


@contextmanager
def _target(state: StateFolder, endpoint: str | None, *, brings_key: bool) -> Iterator[Target]:
    """The running cluster with a key of its own, which ends with the run; its spend stays in the ledger."""
    if endpoint is not None:
        yield Target(endpoint, None)
        return
    running = state.read_supervisor()
    if running is None or "endpoint" not in running:
        raise StartError(
            f"no cluster runs from {state.path}; start one with `sprat up`, or name a server with --endpoint"
        )
    if brings_key:
        yield Target(running["endpoint"], None)
        return
    with opened_store(state) as store:
        key = store.keys.create(tenant=TENANT, name=time.strftime("loadtest-%Y%m%dT%H%M%S"))
        key_id = store.keys.record_of(key).key_id
    try:
        yield Target(running["endpoint"], key)
    finally:
        with opened_store(state) as store:
            store.keys.revoke(key_id)


def _brings_key(arguments: tuple[str, ...]) -> bool:
    return any(each.split("=")[0] in {"--api-key", "--mix"} for each in arguments)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Ctrl-C reaches the load test too: it still writes its report, so it is waited for."""
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
