"""The gateway as a Ray Serve deployment: Serve starts and heals it, HTTP comes to its own port."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from cluster.clock import SystemClock
from cluster.cost import MICRO_USD_PER_USD
from cluster.ledger import Ledger
from cluster.router.router import Router
from cluster.scheduler.breaker import Breaker
from cluster.scheduler.guarded_scheduler import GuardedScheduler
from cluster.scheduler.idempotency import IdempotencyKeys
from cluster.scheduler.local_admission import LocalAdmission
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.terms import AdmissionTerms
from cluster.store import KeyStore, open_store
from deployments.engine_client import EngineClient
from deployments.free_port import bound_socket
from deployments.gateway.admission import Admission
from deployments.gateway.auth import Authenticator
from deployments.gateway.budget_rebuild import BudgetRebuild
from deployments.gateway.call import CallContext
from deployments.gateway.journal import Journal, writer_name
from deployments.gateway.leases import LEASE_TTL_MS, LeaseKeeper
from deployments.gateway.server import GatewayServer
from deployments.gateway.settling import Settling
from deployments.gateway.waiting_room import WaitingRoom
from deployments.runtime import Runtime
from deployments.serve_address import keep_serve_on_node_address

logger = logging.getLogger("ray.serve")

DRAIN_S = 30.0
"""Longest wait for running calls when Serve stops the gateway."""

CUT_S = 1.0
"""aiohttp waits this long, twice, for the calls that are left, then cancels them."""


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway; also what tests start without Ray."""

    runner: web.AppRunner
    context: CallContext
    scheduler: GuardedScheduler

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop listening, let running calls end for a while, cut the rest, settle all of them."""
        for site in list(self.runner.sites):
            await site.stop()
        deadline = time.monotonic() + drain_s
        while self.context.leases.running and time.monotonic() < deadline:  # noqa: ASYNC110 (bounded)
            await asyncio.sleep(0.1)
        await self.runner.cleanup()
        await self.context.leases.close()
        await self.context.settling.close()
        await self.context.engines.close()
        await self.scheduler.close()


async def start_gateway(runtime: Runtime) -> RunningGateway:
    config = runtime.config
    pools = tuple(config.pools)
    name = writer_name("gateway")
    store = await asyncio.to_thread(open_store, runtime.store_url)
    ledger = Ledger(store)
    client = runtime.redis()
    redis = RedisScheduler(client, SystemClock())
    breaker = Breaker(config.redis.failures_to_open, _store_changed)
    scheduler = GuardedScheduler(redis, breaker)
    local = LocalAdmission(SystemClock(), int(config.scheduler.soft_allowance_usd * MICRO_USD_PER_USD))
    room = WaitingRoom()
    rebuild = BudgetRebuild(scheduler, ledger, runtime.rebuild_grace_ms)
    admission = Admission(scheduler, local, room, rebuild)
    journal_folder = Path(runtime.journal_folder)
    settling = Settling(scheduler, ledger, Journal.open(journal_folder, name), journal_folder, rebuild.doubt)
    context = CallContext(
        terms=AdmissionTerms(config, name, LEASE_TTL_MS),
        admission=admission,
        leases=LeaseKeeper(
            name,
            scheduler,
            admission=admission,
            room=room,
            rebuild=rebuild,
            settling=settling,
            ledger=ledger,
            pools=pools,
            charge_lost=config.scheduler.charge_lost_calls,
            listen_for_grants=redis.listen_for_grants,
        ),
        settling=settling,
        engines=EngineClient(runtime.gateway_token, config.gateway.connect_timeout_s),
        max_attempts=config.gateway.max_attempts,
    )
    server = GatewayServer(
        context,
        Router.of(config),
        Authenticator(
            KeyStore(store, runtime.pepper),
            runtime.pepper,
            soft_served=config.scheduler.soft_allowance_usd > 0,
        ),
        IdempotencyKeys(client, scheduler.breaker),
        runtime.pepper,
        max_body_bytes=config.gateway.max_body_bytes,
        request_timeout_s=config.gateway.request_timeout_s,
    )
    # handler_cancellation: a client that leaves cancels its call, which aborts the engine and settles.
    runner = web.AppRunner(
        server.application, access_log=None, handler_cancellation=True, shutdown_timeout=CUT_S
    )
    await runner.setup()
    sock = bound_socket(config.gateway.host, config.gateway.port, reuse_port=True)
    await web.SockSite(runner, sock, backlog=1024).start()
    return RunningGateway(runner, context, scheduler)


def _store_changed(is_away: bool, reason: str) -> None:
    if is_away:
        logger.warning("Redis does not answer (%s): this gateway decides alone", reason[:300])
    else:
        logger.warning("Redis answers again")


class GatewayReplica:
    async def __init__(self, runtime: Runtime) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_serve_on_node_address()
        self._gateway = await start_gateway(runtime)

    def check_health(self) -> None:
        if not self._gateway.runner.sites:
            raise RuntimeError("the gateway does not listen any more")
        if not self._gateway.context.leases.alive():
            raise RuntimeError("the gateway does not renew its leases any more")
        if not self._gateway.context.settling.alive():
            raise RuntimeError("the gateway does not copy its journal any more")

    async def __del__(self) -> None:
        if hasattr(self, "_gateway"):
            await self._gateway.close()
