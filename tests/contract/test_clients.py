"""Clients of others against a real gateway before simulated engines: only address and key are ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.tenants import RateLimit
from deployments.sim.profile import LatencyProfile
from tests.clients.reporting import report
from tests.clients.runs import BROKEN_ENGINE_RUNS, RUNS, run_clients
from tests.gateways import GatewayUnderTest, running_gateway

pytestmark = [pytest.mark.contract, pytest.mark.timeout(300)]

SLOW = LatencyProfile(
    prefill_tokens_per_s=1e6,
    decode_tokens_per_s=100,
    base_ttft_ms=1,
    max_concurrency=16,
    slowdown_per_request=0,
)

EMBEDDER = {
    "tier": "small",
    "task": "embed",
    "base_model": "vectors",
    "node_class": "cheap",
    "engine": "simulated",
    "simulated": {"base_ttft_ms": 1, "prefill_tokens_per_s": 100000, "decode_tokens_per_s": 1000},
    "context_tokens": 256,
    "cpus": 0.1,
    "throughput": {"prompt_tokens_per_s": 1000, "output_tokens_per_s": 100},
}


def name_of(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[0]


@pytest.mark.parametrize(("environment", "files"), RUNS, ids=name_of)
async def test_client(
    environment: str, files: tuple[str, ...], valkey_url: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with running_gateway(
        valkey_url,
        tmp_path,
        base_models__vectors={"source": "folder:/nowhere", "parameters": 1000},
        pools__embedder=EMBEDDER,
    ) as gateway:
        await gateway.add_engine("specialist", "small-1", cap=16)
        await gateway.add_engine("reserve", "large-1", cap=16, profile=SLOW)
        await gateway.add_engine("embedder", "vectors-1", cap=16)

        told = target(gateway) | {"SPRAT_EMBEDDING_MODEL": "vectors"}
        cases = await asyncio.to_thread(run_clients, environment, files, told)

        report(cases, "simulated", subtests)
        for engine in gateway.engines.values():
            await engine.until_idle()
        await gateway.until_no_lease()


@pytest.mark.parametrize(("environment", "files"), BROKEN_ENGINE_RUNS, ids=name_of)
async def test_client_before_an_engine_that_dies(
    environment: str, files: tuple[str, ...], valkey_url: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    async with running_gateway(valkey_url, tmp_path) as gateway:
        await gateway.add_engine("specialist", "small-1", cap=16, fail_after_tokens=3)

        cases = await asyncio.to_thread(run_clients, environment, files, target(gateway))

        report(cases, "simulated", subtests)
        await gateway.until_no_lease()


def target(gateway: GatewayUnderTest) -> dict[str, str]:
    slow_key, _ = gateway.new_key(requests=RateLimit(per_minute=30, burst=1))
    return {
        "SPRAT_ROOT": gateway.url.removesuffix("/v1"),
        "SPRAT_API_KEY": gateway.key,
        "SPRAT_SLOW_KEY": slow_key,
    }
