"""A real gateway on a real port before simulated engines, without Ray: fast, and every fault can be set."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from cluster.config import ClusterConfig
from cluster.errors import SchedulerUnavailable
from cluster.ledger import Ledger
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.store import KeyStore, open_store, sqlite_url
from cluster.store.adapters import Adapters
from cluster.tenants import Budget, KeyLimits, digest_of
from cluster.types import ReplicaPhase, ReplicaState
from deployments.free_port import bound_socket, free_port
from deployments.gateway.replica import RunningGateway, start_gateway
from deployments.residency.engine import AdapterNotLoaded
from deployments.residency.guard import residency_middleware
from deployments.residency.residency import AdapterResidency
from deployments.runtime import Runtime
from deployments.sim.adapters import SimulatedAdapters
from deployments.sim.app import ENGINE, SERVED, make_app
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
class AdapterRoom:
    """How an engine under test holds adapters. Files of those in `broken` cannot be had."""

    places: int = 2
    load_s: float = 0.05
    broken: set[str] = field(default_factory=set)

    async def folder_of(self, adapter_id: str) -> Path:
        if adapter_id in self.broken:
            raise AdapterNotLoaded(f"the store of {adapter_id} does not answer")
        return Path("/nowhere")

    def release(self, adapter_id: str) -> None:
        """Nothing was kept."""


@dataclass
class RunningEngine:
    """A simulated engine and its entry in the replica directory."""

    state: ReplicaState
    application: web.Application
    runner: web.AppRunner
    beat: asyncio.Task[None]
    residency: AdapterResidency | None = None

    @property
    def running(self) -> int:
        return self.application[ENGINE].slots.running

    async def until_running(self, within_s: float = 10.0) -> None:
        """A call has reached it."""
        async with asyncio.timeout(within_s):
            while not self.running:
                await asyncio.sleep(0.005)

    async def until_idle(self, within_s: float = 1.0) -> None:
        """Its calls have ended, or were aborted."""
        async with asyncio.timeout(within_s):
            while self.running:
                await asyncio.sleep(0.005)

    async def die(self) -> None:
        """As a killed process: connections break, and there is no goodbye in the directory."""
        self.beat.cancel()
        await self.runner.cleanup()


@dataclass
class GatewayUnderTest:
    config: ClusterConfig
    url: str
    key: str
    gateway: RunningGateway
    scheduler: RedisScheduler
    session: aiohttp.ClientSession
    keys: KeyStore
    ledger: Ledger
    registry: Adapters
    engines: dict[str, RunningEngine] = field(default_factory=dict)

    async def add_engine(
        self,
        pool: str,
        replica_id: str,
        *,
        cap: int = 4,
        adapters: AdapterRoom | None = None,
        **settings: Any,
    ) -> RunningEngine:
        """`adapters`: it loads them on demand, as replicas of a pool with slots for them do."""
        config = self.config.pools[pool]
        application = make_app(
            SimSettings(
                **(
                    {
                        "models": (config.base_model, *config.adapters),
                        "context_tokens": config.context_tokens,
                        "embeds": config.task == "embed",
                        "profile": FAST,
                        "token": TOKEN,
                    }
                    | settings
                )
            )
        )
        residency, changed = None, asyncio.Event()
        if adapters is not None:
            residency = AdapterResidency(
                SimulatedAdapters(application[SERVED], adapters.load_s, adapters.places),
                adapters,
                adapters.places,
                (),
                changed.set,
            )
            application.middlewares.append(residency_middleware(residency))
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
        beat = asyncio.create_task(self._beat(state, residency, changed))
        engine = RunningEngine(state, application, runner, beat, residency)
        self.engines[replica_id] = engine
        return engine

    async def _beat(
        self, state: ReplicaState, residency: AdapterResidency | None, changed: asyncio.Event
    ) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 0.5)
            changed.clear()
            if residency is not None:
                state = replace(
                    state,
                    adapters=residency.states(),
                    adapter_problems=residency.problems(),
                    adapter_uses=residency.uses(),
                )
            with suppress(SchedulerUnavailable):
                await self.scheduler.heartbeat(state)

    async def replace_engine(self, gone: str, replica_id: str, **settings: Any) -> RunningEngine:
        """Another one in its pool, with other settings."""
        engine = self.engines[gone]
        await engine.die()
        await self.scheduler.deregister(engine.state)
        return await self.add_engine(engine.state.pool, replica_id, **settings)

    async def until_leases(self, count: int) -> None:
        async with asyncio.timeout(10):
            while await self.leases() < count:
                await asyncio.sleep(0.01)

    def post(
        self, body: dict[str, Any], *, path: str = "/chat/completions", key: str | None = None, **headers: str
    ) -> Any:
        return self.session.post(
            self.url + path,
            json={"model": "auto", "messages": [{"role": "user", "content": "hi there, how are you?"}]}
            | body,
            headers={"authorization": f"Bearer {key or self.key}"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def ask(self, body: dict[str, Any], **more: Any) -> tuple[int, Any]:
        """Status, and the error code or the whole body."""
        async with self.post(body, **more) as response:
            text = await response.read()
            answer = orjson.loads(text) if response.content_type == "application/json" else {}
            return response.status, answer.get("error", {}).get("code") or answer

    def new_key(self, *budgets: Budget, tenant: str = "acme", **limits: Any) -> tuple[str, str]:
        """Text and id of a key."""
        text = self.keys.create(tenant, "test", budgets=budgets, limits=KeyLimits(**limits))
        found = self.keys.find(digest_of(text, PEPPER))
        assert found is not None
        return text, found.key_id

    async def budget(self, owner: str, window: str = "total") -> tuple[int, int]:
        """Spent and held, micro-USD."""
        (state,) = await self.scheduler.budget_states([(owner, window)])
        return state.spent_micro_usd, state.held_micro_usd

    async def until_settled(self, within_s: float = 15.0) -> None:
        """Redis and the ledger know of every call that has ended."""
        settling = self.gateway.context.settling
        async with asyncio.timeout(within_s):
            while settling.open or not await settling.flush():
                await asyncio.sleep(0.02)

    async def readiness(self) -> tuple[int, str]:
        async with self.session.get(self.url.removesuffix("/v1") + "/readyz") as response:
            return response.status, (await response.json())["state"]

    async def until_ready(self, within_s: float = 15.0) -> str:
        """The gateway looks at the replica directory every second."""
        async with asyncio.timeout(within_s):
            while (await self.readiness())[0] != 200:
                await asyncio.sleep(0.05)
        return (await self.readiness())[1]

    async def leases(self) -> int:
        return sum([(await self.scheduler.pool_load(pool)).leases for pool in ("specialist", "reserve")])

    async def until_no_lease(self, within_s: float = 2.0) -> None:
        async with asyncio.timeout(within_s):
            while await self.leases():
                await asyncio.sleep(0.02)


def _runtime(
    valkey_url: str, folder: Path, rebuild_grace_ms: int, store_url: str, changes: dict[str, Any]
) -> Runtime:
    return Runtime(
        config=config_of(simulated(**({"gateway__port": free_port()} | changes))),
        redis_url=valkey_url,
        store_url=store_url or sqlite_url(folder / "store.sqlite"),
        journal_folder=str(folder / "journal"),
        gateway_token=TOKEN,
        pepper=PEPPER,
        rebuild_grace_ms=rebuild_grace_ms,
    )


class GatewayProcess:
    """A gateway in a process of its own, on the store and the journals of `folder`, to be killed or
    measured."""

    def __init__(self, valkey_url: str, folder: Path, **changes: Any) -> None:
        self._runtime = _runtime(valkey_url, folder, 0, "", changes)
        self.url = f"http://127.0.0.1:{self._runtime.config.gateway.port}/v1"
        context = multiprocessing.get_context("spawn")
        self._questions, answers = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._runtime, answers), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def asyncio_tasks(self) -> int:
        """Of its event loop."""
        self._questions.send(None)
        return int(self._questions.recv())

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(runtime: Runtime, questions: Connection) -> None:
    def answer() -> None:
        questions.recv()
        questions.send(len(asyncio.all_tasks()))

    async def serve() -> None:
        asyncio.get_running_loop().add_reader(questions.fileno(), answer)
        await start_gateway(runtime)
        await asyncio.Event().wait()

    asyncio.run(serve())


def cost_of(answer: dict[str, Any]) -> int:
    """Micro-USD of a call on the small tier of tests/configs.py."""
    usage = answer["usage"]
    return -(-(usage["prompt_tokens"] * 100_000 + usage["completion_tokens"] * 1_000_000) // 10**6)


@asynccontextmanager
async def running_gateway(
    valkey_url: str, folder: Path, *, rebuild_grace_ms: int = 0, store_url: str = "", **changes: Any
) -> AsyncIterator[GatewayUnderTest]:
    """Two of them on one `folder` share store and journals, as two gateways of one node do."""
    runtime = _runtime(valkey_url, folder, rebuild_grace_ms, store_url, changes)
    port = runtime.config.gateway.port
    store = open_store(runtime.store_url)
    keys = KeyStore(store, PEPPER)
    key = keys.create("tenant", "test")
    gateway = await start_gateway(runtime)
    async with aiohttp.ClientSession() as session:
        under_test = GatewayUnderTest(
            runtime.config,
            f"http://127.0.0.1:{port}/v1",
            key,
            gateway,
            runtime.scheduler(),
            session,
            keys,
            Ledger(store),
            Adapters(store),
        )
        try:
            yield under_test
        finally:
            for engine in under_test.engines.values():
                await engine.die()
            await gateway.close(drain_s=0)
            await under_test.scheduler.close()
