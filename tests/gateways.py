"""A real gateway on a real port before simulated engines, without Ray: fast, and every fault can be set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.store import KeyStore, open_store, sqlite_url
from cluster.types import ReplicaPhase, ReplicaState
from deployments.free_port import bound_socket, free_port
from deployments.gateway.replica import RunningGateway, start_gateway
from deployments.runtime import Runtime
from deployments.sim.app import ENGINE, make_app
from deployments.sim.profile import LatencyProfile
from deployments.sim.settings import SimSettings
from tests.configs import config_of, simulated

TOKEN = "t" * 32
PEPPER = b"p" * 32
FAST = LatencyProfile(
    prefill_tokens_per_s=1e6,
    decode_tokens_per_s=1e4,
    base_ttft_ms=1,
    max_concurrency=16,
    slowdown_per_request=0,
)


@dataclass
class RunningEngine:
    """A simulated engine and its entry in the replica directory."""

    state: ReplicaState
    application: web.Application
    runner: web.AppRunner
    beat: asyncio.Task[None]

    @property
    def running(self) -> int:
        return self.application[ENGINE].slots.running

    async def die(self) -> None:
        """As a killed process: connections break, and there is no goodbye in the directory."""
        self.beat.cancel()
        await self.runner.cleanup()


@dataclass
class GatewayUnderTest:
    url: str
    key: str
    gateway: RunningGateway
    scheduler: RedisScheduler
    session: aiohttp.ClientSession
    engines: dict[str, RunningEngine] = field(default_factory=dict)

    async def add_engine(self, pool: str, replica_id: str, *, cap: int = 4, **settings: Any) -> RunningEngine:
        config = simulated()["pools"][pool]
        application = make_app(
            SimSettings(
                **(
                    {
                        "models": (config["base_model"], *config.get("adapters", ())),
                        "context_tokens": config["context_tokens"],
                        "profile": FAST,
                        "token": TOKEN,
                    }
                    | settings
                )
            )
        )
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        sock = bound_socket("127.0.0.1")
        host, port = sock.getsockname()
        await web.SockSite(runner, sock).start()
        state = ReplicaState(
            replica_id=replica_id,
            pool=pool,
            phase=ReplicaPhase.READY,
            address=f"{host}:{port}",
            epoch=1,
            max_concurrency=cap,
        )
        await self.scheduler.heartbeat(state)
        engine = RunningEngine(state, application, runner, asyncio.create_task(self._beat(state)))
        self.engines[replica_id] = engine
        return engine

    async def _beat(self, state: ReplicaState) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self.scheduler.heartbeat(state)

    def post(self, body: dict[str, Any], *, path: str = "/chat/completions", **headers: str) -> Any:
        return self.session.post(
            self.url + path,
            json={"model": "auto", "messages": [{"role": "user", "content": "hi there, how are you?"}]}
            | body,
            headers={"authorization": f"Bearer {self.key}"} | headers,
        )

    async def leases(self) -> int:
        return sum([(await self.scheduler.pool_load(pool)).leases for pool in ("specialist", "reserve")])

    async def until_no_lease(self, within_s: float = 2.0) -> None:
        async with asyncio.timeout(within_s):
            while await self.leases():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_gateway(valkey_url: str, folder: Path, **changes: Any) -> AsyncIterator[GatewayUnderTest]:
    port = free_port()
    runtime = Runtime(
        config=config_of(simulated(**{"gateway__port": port, **changes})),
        redis_url=valkey_url,
        store_url=sqlite_url(folder / "store.sqlite"),
        gateway_token=TOKEN,
        pepper=PEPPER,
    )
    key = KeyStore(open_store(runtime.store_url), PEPPER).create("tenant", "test")
    gateway = await start_gateway(runtime)
    async with aiohttp.ClientSession() as session:
        under_test = GatewayUnderTest(
            f"http://127.0.0.1:{port}/v1", key, gateway, runtime.scheduler(), session
        )
        try:
            yield under_test
        finally:
            for engine in under_test.engines.values():
                await engine.die()
            await gateway.close(drain_s=0)
            await under_test.scheduler.close()
