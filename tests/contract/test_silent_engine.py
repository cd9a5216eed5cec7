"""An engine whose host falls off the network: nothing is closed, nothing is refused, nothing comes back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.types import ReplicaPhase, ReplicaState
from deployments.engine_client import SILENT_PEER_S
from tests.gateways import TOKEN, GatewayUnderTest, running_gateway
from tests.links import Link, second_host, until_listening

pytestmark = pytest.mark.contract

ENGINE = """
import sys
from aiohttp import web
from deployments.sim.app import make_app
from deployments.sim.profile import LatencyProfile
from deployments.sim.settings import SimSettings
profile = LatencyProfile(1e6, 20, 1, 16, 0)
settings = SimSettings(models=("tiny",), context_tokens=256, profile=profile, token=sys.argv[2])
web.run_app(make_app(settings), host=sys.argv[1], port=int(sys.argv[3]), print=None)
"""
PORT = 9900  # the namespace is the test's own
CONNECT_TIMEOUT_S = 1.0
NOTICED_S = SILENT_PEER_S + CONNECT_TIMEOUT_S + 2


@dataclass
class FarEngine:
    link: Link
    gateway: GatewayUnderTest
    state: ReplicaState

    async def answered(self, calls: int) -> list[tuple[int, str, float]]:
        """Status, replica and seconds of that many calls at once."""

        async def call() -> tuple[int, str, float]:
            started_s = time.monotonic()
            body = {"model": "tiny", "max_tokens": 2}
            async with self.gateway.post(body) as response:
                await response.read()
            return response.status, response.headers["x-sprat-replica"], time.monotonic() - started_s

        return list(await asyncio.gather(*(call() for _ in range(calls))))


@pytest.fixture
def link() -> Iterator[Link]:
    with second_host() as made:
        yield made


@pytest.fixture
def engine_there(link: Link) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-c", ENGINE, link.there, TOKEN, str(PORT)]
    engine = subprocess.Popen(link.inside(command), cwd=Path(__file__).parents[2])
    try:
        until_listening(link.there, PORT)
        yield f"{link.there}:{PORT}"
    finally:
        engine.kill()
        engine.wait()


@pytest.fixture
async def far(link: Link, engine_there: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[FarEngine]:
    """The only engine of its pool is on the other host."""
    async with running_gateway(valkey_url, tmp_path, gateway__connect_timeout_s=CONNECT_TIMEOUT_S) as gateway:
        state = ReplicaState(
            replica_id="far",
            pool="specialist",
            phase=ReplicaPhase.READY,
            address=engine_there,
            epoch=1,
            max_concurrency=8,
        )
        await gateway.scheduler.heartbeat(state)
        await gateway.until_ready()
        yield FarEngine(link, gateway, state)


async def test_calls_on_open_connections_go_elsewhere_within_the_heartbeats_time(far: FarEngine) -> None:
    warm = await far.answered(4)
    assert {replica for _, replica, _ in warm} == {"far"}
    await far.gateway.add_engine("specialist", "near")
    await far.gateway.scheduler.heartbeat(far.state)  # the last one
    far.link.cut()

    answers = await far.answered(8)

    assert {status for status, _, _ in answers} == {200}
    assert {replica for _, replica, _ in answers} == {"near"}
    assert max(seconds for _, _, seconds in answers) < NOTICED_S
    assert {replica for _, replica, _ in await far.answered(4)} == {"near"}
