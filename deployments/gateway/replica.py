"""The gateway as a Ray Serve deployment: Serve starts and heals it, HTTP comes to its own port."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiohttp import web

from cluster.router.router import Router
from cluster.store import KeyStore, open_store
from deployments.engine_client import EngineClient
from deployments.free_port import bound_socket
from deployments.gateway.auth import Authenticator
from deployments.gateway.call import CallContext
from deployments.gateway.leases import LeaseKeeper
from deployments.gateway.server import GatewayServer
from deployments.runtime import Runtime
from deployments.serve_address import keep_serve_on_node_address

DRAIN_S = 30.0
"""Longest wait for running calls when Serve stops the gateway."""

CUT_S = 1.0
"""aiohttp waits this long, twice, for the calls that are left, then cancels them."""


@dataclass(slots=True)
class RunningGateway:
    """A listening gateway; also what tests start without Ray."""

    runner: web.AppRunner
    context: CallContext

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop listening, let running calls end for a while, cut the rest, settle all of them."""
        for site in list(self.runner.sites):
            await site.stop()
        deadline = time.monotonic() + drain_s
        while self.context.leases.running and time.monotonic() < deadline:  # noqa: ASYNC110 (bounded)
            await asyncio.sleep(0.1)
        await self.runner.cleanup()
        await self.context.leases.close()
        await self.context.engines.close()
        await self.context.scheduler.close()


async def start_gateway(runtime: Runtime) -> RunningGateway:
    config = runtime.config
    pools = tuple(config.pools)
    scheduler = runtime.scheduler()
    keys = KeyStore(open_store(runtime.store_url), runtime.pepper)
    context = CallContext(
        scheduler=scheduler,
        leases=LeaseKeeper(scheduler, pools),
        engines=EngineClient(runtime.gateway_token, config.gateway.connect_timeout_s),
        max_attempts=config.gateway.max_attempts,
        spill=config.router.spill,
    )
    server = GatewayServer(
        context,
        Router.of(config),
        Authenticator(keys, runtime.pepper),
        pools,
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
    return RunningGateway(runner, context)


class GatewayReplica:
    async def __init__(self, runtime: Runtime) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_serve_on_node_address()
        self._gateway = await start_gateway(runtime)

    def check_health(self) -> None:
        if not self._gateway.runner.sites:
            raise RuntimeError("the gateway does not listen any more")
        if not self._gateway.context.leases.alive():
            raise RuntimeError("the gateway does not renew its leases any more")

    async def __del__(self) -> None:
        if hasattr(self, "_gateway"):
            await self._gateway.close()
