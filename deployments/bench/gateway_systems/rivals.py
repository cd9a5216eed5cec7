"""The rivals that come as packages: how each is started before the stub engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from deployments.bench.gateway_systems.rival_environment import Rival, rival_environment
from deployments.bench.gateway_systems.server_process import server_process
from deployments.bench.gateway_systems.system import Bench, RunningSystem
from deployments.free_port import free_port
from deployments.weights.store import default_root

VLLM_ROUTER = Rival("vllm-router", "0.1.17")
LITELLM = Rival("litellm[proxy]", "1.104.5")  # later ones ask for a certifi that few mirrors have


@asynccontextmanager
async def vllm_router(bench: Bench) -> AsyncIterator[RunningSystem]:
    """In Rust; checks no key, keeps no books."""
    environment = await _environment(VLLM_ROUTER, bench)
    port = free_port()
    command = [
        *(str(environment / "bin" / "vllm-router"), "--worker-urls", bench.stub_url),
        *("--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(free_port()), "--log-level", "warning"),
    ]
    async with _started("vllm-router", VLLM_ROUTER, command, bench, port=port, key="none") as system:
        yield system


@asynccontextmanager
async def litellm(bench: Bench) -> AsyncIterator[RunningSystem]:
    """One worker, no database, no Redis: its fastest form."""
    environment = await _environment(LITELLM, bench)
    port, key = free_port(), f"sk-{secrets.token_hex(24)}"
    settings = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"{bench.stub_url}/v1",
                    "api_key": "none",
                },
            }
            for model in ("at-once", "paced")
        ],
        "general_settings": {"master_key": key},
    }
    file = bench.folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [
        *(str(environment / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1"),
        *("--port", str(port), "--num_workers", "1", "--telemetry", "False"),
    ]
    variables = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it downloads one
    }
    async with _started("litellm", LITELLM, command, bench, port=port, key=key, **variables) as system:
        yield system


async def _environment(rival: Rival, bench: Bench) -> Path:
    return await asyncio.to_thread(rival_environment, rival, default_root() / "bench-envs", bench.say)


@asynccontextmanager
async def _started(
    name: str, rival: Rival, command: list[str], bench: Bench, *, port: int, key: str, **variables: str
) -> AsyncIterator[RunningSystem]:
    # Nothing of the user's environment: no keys of providers, no proxies, no home folder.
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(bench.folder),
        "TMPDIR": tempfile.gettempdir(),
    } | variables
    async with server_process(
        command, log=bench.folder / f"{name}.log", cores=bench.pinning.systems, environment=environment
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.until_answering(url, key, "at-once")
        yield RunningSystem(
            name, url, key, "at-once", "paced", pids=server.pids(), versions=((rival.name, rival.version),)
        )
