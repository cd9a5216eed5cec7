"""The simulated engine as a replica: the same HTTP surface, tokens timed by a declared profile."""

from __future__ import annotations

from aiohttp import web

from deployments.engine_replica import EngineReplica
from deployments.free_port import bound_socket
from deployments.residency.guard import residency_middleware
from deployments.sim.adapters import SimulatedAdapters
from deployments.sim.app import SERVED, make_app
from deployments.sim.profile import LatencyProfile
from deployments.sim.settings import SimSettings


class SimulatedReplica(EngineReplica):
    simulated = True
    _runner: web.AppRunner | None = None

    async def start_engine(self) -> str:
        profile = self.pool.simulated
        if profile is None:
            raise ValueError(f"pool {self.pool_name} has no `simulated` section")
        application = make_app(
            SimSettings(
                models=(self.pool.base_model,),
                context_tokens=self.pool.context_tokens,
                embeds=self.pool.task == "embed",
                profile=LatencyProfile(
                    prefill_tokens_per_s=profile.prefill_tokens_per_s,
                    decode_tokens_per_s=profile.decode_tokens_per_s,
                    base_ttft_ms=profile.base_ttft_ms,
                    max_concurrency=self.pool.max_concurrency,
                    slowdown_per_request=profile.slowdown_per_request,
                ),
                token=self.runtime.gateway_token,
            )
        )
        if self.pool.slots_for_adapters:
            engine = SimulatedAdapters(
                application[SERVED], profile.adapter_load_ms / 1000, self.pool.slots_for_adapters
            )
            residency = await self.start_residency(engine, base=None)
            application.middlewares.append(residency_middleware(residency))
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        sock = bound_socket(self.listen_host())
        host, port = sock.getsockname()
        await web.SockSite(self._runner, sock).start()
        return f"{host}:{port}"

    def engine_failure(self) -> str | None:
        return None

    async def stop_engine(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
