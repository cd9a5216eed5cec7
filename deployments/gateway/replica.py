"""The gateway as a Ray Serve deployment: Serve starts and heals it, HTTP comes to its own port."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.clock import SystemClock
from cluster.config import GatewayConfig
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
from cluster.store.adapters import Adapters
from cluster.store.decisions import DecisionLog
from deployments.engine_client import EngineClient
from deployments.free_port import bound_socket
from deployments.gateway.admission import Admission
from deployments.gateway.auth import Authenticator
from deployments.gateway.booking_process import BookingProcess
from deployments.gateway.budget_rebuild import BudgetRebuild
from deployments.gateway.call import CallContext
from deployments.gateway.cascade import Cascades
from deployments.gateway.current_router import CurrentRouter
from deployments.gateway.feedback import Feedback
from deployments.gateway.http.asgi import Application, AsgiFront
from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.listener import Listener
from deployments.gateway.http.tls import tls_context
from deployments.gateway.journal import Journal, writer_name
from deployments.gateway.leases import LEASE_TTL_MS, LeaseKeeper
from deployments.gateway.ledger_copy import LedgerCopy
from deployments.gateway.loop_thread import LoopThread
from deployments.gateway.pages import pages
from deployments.gateway.server import GatewayServer, refused_by_http
from deployments.gateway.settling import Settling
from deployments.gateway.suspects import Suspects
from deployments.gateway.waiting_room import WaitingRoom
from deployments.runtime import Runtime
from deployments.serve_address import keep_serve_on_node_address

logger = logging.getLogger("ray.serve")

DRAIN_S = 30.0
"""Longest wait for running calls when Serve stops the gateway."""


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway; also what tests start without Ray."""

    listener: Listener
    server: GatewayServer
    current: CurrentRouter
    context: CallContext
    scheduler: GuardedScheduler
    cascades: Cascades

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop listening, let running calls end for a while, cut the rest, settle all of them."""
        self.listener.stop_accepting()
        deadline = time.monotonic() + drain_s
        while self.context.leases.running and time.monotonic() < deadline:  # noqa: ASYNC110 (bounded)
            await asyncio.sleep(0.1)
        await self.listener.close()
        await self.current.close()
        await self.context.leases.close()
        await self.context.settling.close()
        await self.context.engines.close()
        await self.cascades.close()
        await self.scheduler.close()


async def start_gateway(runtime: Runtime) -> RunningGateway:
    config = runtime.config
    store = await asyncio.to_thread(open_store, runtime.store_url)
    current = CurrentRouter(Router.of(config), Adapters(store))
    await current.start()
    cascades = await Cascades.start(config)
    pools = tuple(config.pools)
    name = writer_name("gateway")
    ledger = Ledger(store)
    client = runtime.redis()
    redis = RedisScheduler(client, SystemClock(), runtime.pipelined_redis())
    breaker = Breaker(config.redis.failures_to_open, _store_changed)
    scheduler = GuardedScheduler(redis, breaker)
    local = LocalAdmission(SystemClock(), int(config.scheduler.soft_allowance_usd * MICRO_USD_PER_USD))
    room = WaitingRoom()
    rebuild = BudgetRebuild(scheduler, ledger, runtime.rebuild_grace_ms)
    may_wake = any(pool.min_replicas == 0 for pool in config.pools.values())
    admission = Admission(scheduler, local, room, rebuild, may_wake=may_wake)
    journal_folder = Path(runtime.journal_folder)
    journal = Journal.open(journal_folder, name)
    booker = BookingProcess(runtime.store_url)
    await asyncio.to_thread(booker.start)
    copy = LedgerCopy(scheduler, booker, journal, journal_folder, rebuild.doubt)
    settling = Settling(scheduler, journal, copy)
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
        suspects=Suspects(),
        max_attempts=config.gateway.max_attempts,
        judges=cascades.judges,
    )
    authenticator = Authenticator(
        KeyStore(store, runtime.pepper), runtime.pepper, soft_served=config.scheduler.soft_allowance_usd > 0
    )
    server = GatewayServer(
        context,
        current,
        authenticator,
        IdempotencyKeys(client, scheduler.breaker),
        pages(current, admission, authenticator, Feedback(DecisionLog(store))),
        pepper=runtime.pepper,
        request_timeout_s=config.gateway.request_timeout_s,
    )
    sock = bound_socket(config.gateway.host, config.gateway.port, reuse_port=True)
    listener = Listener(
        sock, server.handle, http_limits(config.gateway), tls_context(config.gateway), refused_by_http
    )
    await listener.start()
    return RunningGateway(listener, server, current, context, scheduler, cascades)


def http_limits(gateway: GatewayConfig) -> HttpLimits:
    return HttpLimits(
        body_bytes=gateway.max_body_bytes,
        hosts=frozenset(host.lower().encode() for host in gateway.allowed_hosts),
        connections=gateway.max_connections,
        connections_per_address=gateway.max_connections_per_address,
    )


def _store_changed(is_away: bool, reason: str) -> None:
    if is_away:
        logger.warning("Redis does not answer (%s): this gateway decides alone", reason[:300])
    else:
        logger.warning("Redis answers again")


class GatewayReplica:
    """Runs in a thread of its own with uvloop; the loop that Serve gives to user code is asyncio's, and
    answers Serve's health checks meanwhile."""

    async def __init__(self, runtime: Runtime) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_serve_on_node_address()
        tune_process()
        self._thread = LoopThread("gateway")
        self._gateway = await self._thread.run(start_gateway(runtime))

    def check_health(self) -> None:
        if not self._gateway.listener.is_listening:
            raise RuntimeError("the gateway does not listen any more")
        if not self._gateway.context.leases.alive():
            raise RuntimeError("the gateway does not renew its leases any more")
        if not self._gateway.context.settling.alive():
            raise RuntimeError("the gateway does not copy its journal any more")

    async def __serve_build_asgi_app__(self) -> Application:
        """For the route through Ray Serve's proxy (`gateway.serve_proxy_port`)."""
        return AsgiFront(self._gateway.listener)

    async def __del__(self) -> None:
        if hasattr(self, "_gateway"):
            await self._thread.run(self._gateway.close())
            self._thread.stop()


def tune_process() -> None:
    """A call makes some hundred small objects and nearly no cycles: looking for cycles after every 700 of
    them costs a tenth of the processor, and finds nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    # The event loop waits no longer than this for the thread that copies into the ledger.
    sys.setswitchinterval(0.001)
