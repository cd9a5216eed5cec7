"""A cluster of one pool with one replica: `sprat up` in a folder of its own, `sprat down` after."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.catalogue import Entry
from cluster.errors import StartError
from deployments.catalogue.root_cause import PASSED_ON, root_cause_in
from deployments.catalogue.tiny_weights import tensor_shapes
from deployments.free_port import free_port

POOL = "only"
ADAPTER = "random@1"
CONTEXT_TOKENS = 1024
MAX_RANK = 8
"""The smallest that vLLM takes."""

START_TIMEOUT_S = 280.0


@dataclass(frozen=True, slots=True)
class Running:
    """`url` ends before `/chat/completions`; `ready_s` from the command to the ready replica."""

    url: str
    key: str
    ready_s: float
    kernels: str


@dataclass(frozen=True, slots=True)
class Weights:
    """A ready folder, where a cluster gets it from, and how many numbers it holds."""

    folder: Path
    source: str
    parameters: int

    @classmethod
    def of(cls, folder: Path, source: str) -> Weights:
        parameters = sum(math.prod(shape) for _, shape in tensor_shapes(folder))
        return cls(folder, source, parameters)


def pool_yaml(entry: Entry, weights: Weights, adapter: Path | None) -> dict[str, Any]:
    """The cluster that serves `entry` from `weights` on this machine's CPU, with its flags and the adapter in
    the folder `adapter`."""
    pool = {
        "tier": POOL,
        "base_model": entry.model,
        "node_class": "here",
        "context_tokens": CONTEXT_TOKENS,
        "max_concurrency": 2,
        "default_max_tokens": 16,
        "dtype": "float32",
        "kv_cache_gib": 1,
        "max_rank": MAX_RANK,
        "adapters": [ADAPTER] if adapter is not None else [],
        "engine_options": ["--enforce-eager", *entry.parser_flags, *entry.engine_options],
        "throughput": {"prompt_tokens_per_s": 1000, "output_tokens_per_s": 100},
    }
    base_model = {"source": weights.source, "parameters": weights.parameters}
    if weights.source == entry.source:
        base_model["sha256"] = entry.sha256
    adapters = (
        {ADAPTER: {"base_model": entry.model, "source": f"folder:{adapter}", "rank": MAX_RANK}}
        if adapter is not None
        else {}
    )
    return {
        "name": "proof",
        "redis": {"timeout_ms": 5000, "connect_timeout_ms": 5000},  # the engine takes every core
        "node_classes": {"here": {"fallbacks": [{}], "usd_per_hour": 0.04}},
        "base_models": {entry.model: base_model},
        "adapters": adapters,
        "tiers": [POOL],
        "pools": {POOL: pool},
        "router": {"default_tier": POOL},
    }


@contextmanager
def single_pool(config: Mapping[str, Any], folder: Path) -> Iterator[Running]:
    """Raises StartError with the sentence that `sprat up` ended with, or with the exception behind it."""
    file, state = folder / "cluster.yaml", folder / "state"
    file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    sprat = [sys.executable, "-m", "deployments.cli.main", "--state", str(state)]
    # A Ray of its own: nothing of one that runs here already.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ["SPRAT__GATEWAY__PORT"] = str(free_port())
    up = subprocess.run(
        [*sprat, "up", str(file), "--no-examples", "--json", "--timeout-s", str(START_TIMEOUT_S)],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    if up.returncode != 0:
        said = (up.stderr.strip().splitlines() or ["sprat up said nothing"])[-1]
        cause = root_cause_in(state / "logs") if any(each in said for each in PASSED_ON) else None
        raise StartError(cause or said)
    try:
        told = json.loads(up.stdout)
        shown = subprocess.run(
            [*sprat, "status", "--json"], capture_output=True, text=True, env=environ, check=True
        )
        (pool,) = json.loads(shown.stdout)["pools"]
        kernels = pool["replicas"][0]["kernels"]
        yield Running(told["endpoint"], told["api_key"], told["ready_s"], kernels)
    finally:
        subprocess.run([*sprat, "down"], env=environ, check=False, capture_output=True)
