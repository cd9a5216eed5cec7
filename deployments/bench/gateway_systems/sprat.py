"""sprat itself: the real gateway in one or more processes on one port, a Valkey and a store of its own.

Everything that a call of a paying tenant goes through is on: key, rate limits of requests and tokens, a hard
budget, the policy, admission, lease, settlement, journal, ledger and decision log. The limits are so high
that none refuses.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import SchedulerUnavailable
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import HEARTBEAT_PERIOD_S
from cluster.store import KeyStore, open_store, sqlite_url
from cluster.tenants import Budget, BudgetWindow, KeyLimits, RateLimit
from cluster.types import ReplicaPhase, ReplicaState
from deployments.bench.gateway_systems.gateway_folder import GatewayFolder
from deployments.bench.gateway_systems.made_up_labels import write_made_up_model
from deployments.bench.gateway_systems.pinning import on_cores
from deployments.bench.gateway_systems.server_process import server_process
from deployments.bench.gateway_systems.system import Bench, RunningSystem
from deployments.free_port import free_port
from deployments.runtime import Runtime
from deployments.valkey import start_server, stop_server
from deployments.version import version

CONFIG = Path(__file__).parents[2] / "examples" / "bench.yaml"
LEARNED, CASCADE = "rules_then_learned", "rules_then_cascade"
NEVER_REACHED = RateLimit(per_minute=1_000_000_000, burst=1_000_000_000)
BUDGET_MICRO_USD = 10**12


@asynccontextmanager
async def sprat(
    bench: Bench, *, name: str = "sprat", processes: int = 1, policy: str = "rules"
) -> AsyncIterator[RunningSystem]:
    """`policy` is one of the bench's YAML."""
    folder = bench.folder / name
    folder.mkdir(mode=0o700)
    async with AsyncExitStack() as stack:
        with on_cores(bench.pinning.rest):
            valkey = start_server(folder / "v.sock", folder / "valkey")
        stack.callback(stop_server, valkey)
        pepper, port = secrets.token_bytes(32), free_port()
        store_url = sqlite_url(folder / "store.sqlite")
        GatewayFolder(folder).write(
            config_file=CONFIG,
            settings=_settings(port, policy, folder),
            redis_url=f"unix://{folder / 'v.sock'}",
            store_url=store_url,
            gateway_token=secrets.token_hex(32),
            pepper=pepper.hex(),
        )
        key = _paying_key(store_url, pepper)
        runtime = GatewayFolder(folder).runtime()
        await _register_stub(runtime, bench.stub_url, stack)
        pids: list[int] = []
        for number in range(processes):
            command = [sys.executable, "-m", "deployments.bench.gateway_systems.sprat_gateway", str(folder)]
            log = folder / f"gateway-{number}.log"
            server = await stack.enter_async_context(
                server_process(command, log=log, cores=bench.pinning.systems, environment=os.environ)
            )
            await server.until_listening(port)
            pids += server.pids()
        url = f"http://127.0.0.1:{port}"
        await server.until_answering(url, key, "auto")
        yield RunningSystem(
            name,
            url,
            key,
            model="auto",
            model_paced="auto",
            pids=tuple(pids),
            store_pids=(valkey.pid,),
            versions=(("sprat", version()),),
        )


def _settings(port: int, policy: str, folder: Path) -> dict[str, str]:
    settings = {"SPRAT__GATEWAY__PORT": str(port), "SPRAT__ROUTER__POLICY": policy}
    if policy == LEARNED:
        model = folder / "router.npz"
        write_made_up_model(model)
        settings["SPRAT__ROUTER__POLICIES__LEARNED__MODEL"] = str(model)
    return settings


def _paying_key(store_url: str, pepper: bytes) -> str:
    store = open_store(store_url)
    try:
        return KeyStore(store, pepper).create(
            "bench",
            "bench",
            limits=KeyLimits(requests=NEVER_REACHED, tokens=NEVER_REACHED),
            budgets=(Budget("", BudgetWindow.DAY, BUDGET_MICRO_USD),),  # create makes the key its owner
        )
    finally:
        store.dispose()


async def _register_stub(runtime: Runtime, stub_url: str, stack: AsyncExitStack) -> None:
    """The stub engine as a replica of each pool in the replica directory, for as long as the stack lasts."""
    scheduler = runtime.scheduler()
    stack.push_async_callback(scheduler.close)
    replicas = [
        ReplicaState(
            f"{pool}-0",
            pool,
            ReplicaPhase.READY,
            address=urlsplit(stub_url).netloc,
            epoch=1,
            max_concurrency=settings.max_concurrency,
        )
        for pool, settings in runtime.config.pools.items()
    ]
    for replica in replicas:
        await scheduler.heartbeat(replica)
    beating = asyncio.create_task(_beat(scheduler, replicas))
    stack.callback(beating.cancel)


async def _beat(scheduler: RedisScheduler, replicas: list[ReplicaState]) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_PERIOD_S)
        for replica in replicas:
            with suppress(SchedulerUnavailable):
                await scheduler.heartbeat(replica)
