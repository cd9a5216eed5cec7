"""The controller as a Ray Serve deployment: Serve keeps one alive. Should there be two for a moment, Redis
lets one of them write (`cluster.scheduler.desired_sets`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress

from cluster.clock import SystemClock
from cluster.errors import SpratError
from cluster.placement.adapters import TICK_S
from cluster.scheduler.desired_sets import DesiredSets
from cluster.store import open_store
from cluster.store.adapters import Adapters
from deployments.controller.adapter_tick import AdapterTick
from deployments.runtime import Runtime
from deployments.serve_address import keep_serve_on_node_address

logger = logging.getLogger("ray.serve")


class ControllerReplica:
    async def __init__(self, runtime: Runtime) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_serve_on_node_address()
        self._scheduler = runtime.scheduler()
        self._desired = DesiredSets(runtime.redis())
        store = await asyncio.to_thread(open_store, runtime.store_url)
        self._tick = AdapterTick(
            runtime.config,
            self._scheduler,
            Adapters(store),
            self._desired,
            clock=SystemClock(),
            name=f"controller-{secrets.token_hex(4)}",
        )
        self._ticking = asyncio.create_task(self._run())

    def check_health(self) -> None:
        if self._ticking.done():
            raise RuntimeError("the controller does not tick any more")

    async def __del__(self) -> None:
        if not hasattr(self, "_ticking"):
            return
        self._ticking.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticking
        await self._desired.close()
        await self._scheduler.close()

    async def _run(self) -> None:
        """A store that is away leaves everything as it is: replicas keep what they hold."""
        while True:
            try:
                await self._tick.run()
            except SpratError as error:
                logger.warning("no placement of adapters this time: %s", error)
            except Exception:
                logger.exception("the placement of adapters failed")
            await asyncio.sleep(TICK_S)
