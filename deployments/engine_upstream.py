"""An external OpenAI-compatible endpoint as a replica: a small process with the life and the HTTP surface of
any engine, that asks the operator's upstream (`deployments/upstream/`)."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web

from cluster.errors import StartError
from cluster.types import ReplicaPhase
from deployments.engine_replica import EngineReplica
from deployments.free_port import bound_socket
from deployments.upstream.app import make_app
from deployments.upstream.breaker import Circuit
from deployments.upstream.client import UpstreamClient

LOOK_PERIOD_S = 0.5


class UpstreamReplica(EngineReplica):
    """While its circuit is open it is not ready, so that the router goes on to the next tier or pool; `sprat
    status` shows why."""

    _client: UpstreamClient | None = None
    _runner: web.AppRunner | None = None
    _watch: asyncio.Task[None] | None = None

    async def start_engine(self) -> str:
        upstream = self.pool.upstream
        if upstream is None:
            raise ValueError(f"pool {self.pool_name} has no `upstream` section")
        self._client = client = UpstreamClient(
            upstream, api_key(upstream.api_key_env), pool=self.pool_name, replicas=self.pool.max_replicas
        )
        try:
            if upstream.check:
                self.report("asking the upstream for its models")
                self.warning = await client.check()
            application = make_app(
                upstream, client, model=self.pool.base_model, token=self.runtime.gateway_token
            )
            self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
            await self._runner.setup()
            sock = bound_socket(self.listen_host())
            host, port = sock.getsockname()
            await web.SockSite(self._runner, sock).start()
        except BaseException:
            await self.stop_engine()
            raise
        self._watch = asyncio.create_task(self._show_circuit(client, asks=upstream.check))
        return f"{host}:{port}"

    def engine_failure(self) -> str | None:
        return "its watch ended" if self._watch is None or self._watch.done() else None

    async def stop_engine(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    async def _show_circuit(self, client: UpstreamClient, *, asks: bool) -> None:
        """In the directory. When the cooldown is over the upstream is asked for its models, where it has
        them, before a call of a client tries."""
        shown = Circuit.CLOSED
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            if client.breaker.circuit is shown:
                continue
            if asks and client.breaker.circuit is Circuit.HALF_OPEN:
                await client.recover()
            if self._state.phase not in (ReplicaPhase.READY, ReplicaPhase.LOADING):
                return  # it is being stopped
            shown = circuit = client.breaker.circuit
            if circuit is Circuit.CLOSED:
                self._set(phase=ReplicaPhase.READY, detail=self.warning)
            elif circuit is Circuit.HALF_OPEN:
                self._set(phase=ReplicaPhase.READY, detail=f"trying again after: {client.breaker.reason}")
            else:
                self._set(phase=ReplicaPhase.LOADING, detail=f"unavailable: {client.breaker.reason}")
            self._tell_soon()


def api_key(variable: str | None) -> str | None:
    """From the environment of this process. Raises StartError, which never repeats the value."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise StartError(
            f"{variable} is not set where this replica runs, and upstream.api_key_env names it. Set it in "
            "the environment of `sprat up`, or of `ray start` on every node that the pool may run on."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise StartError(f"{variable} holds characters that no key has. Set it to the key alone.")
    return key
