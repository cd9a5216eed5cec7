"""A cluster of the evaluation's own: `sprat up` in a state folder beside the answers, `sprat down` after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import StartError
from deployments.evaluation.collect import Endpoint
from deployments.free_port import free_port


@contextmanager
def own_cluster(config: Path, state: Path, settings: Mapping[str, str]) -> Iterator[Endpoint]:
    """Of the YAML `config`, on a free port. `settings` override the YAML (SPRAT__… variables). Raises
    StartError."""
    sprat = [sys.executable, "-m", "deployments.cli.main", "--state", str(state)]
    environ = {"SPRAT__GATEWAY__PORT": str(free_port()), **os.environ, **settings}
    started = subprocess.run(
        [*sprat, "up", str(config), "--no-examples", "--json"],
        stdout=subprocess.PIPE,
        env=environ,
        check=False,
    )
    if started.returncode != 0:
        raise StartError(f"the cluster of {config} did not start; {state}/logs say why.")
    told = json.loads(started.stdout)
    try:
        yield Endpoint(told["endpoint"], told["api_key"])
    finally:
        subprocess.run([*sprat, "down"], env=environ, check=False, stdout=subprocess.DEVNULL)
