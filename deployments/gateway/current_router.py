"""The router that a gateway uses now. The registry of adapters changes while gateways run: each looks every
two seconds, at one number, and makes a new view of the fleet when that has grown."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from cluster.errors import SpratError
from cluster.router.router import Router
from cluster.store.adapters import Adapters

logger = logging.getLogger("ray.serve")

LOOK_S = 2.0
"""A version that was promoted or retired is known everywhere after at most this long."""


class CurrentRouter:
    def __init__(self, router: Router, registry: Adapters) -> None:
        self.router = router
        self._declared = router.view
        self._registry = registry
        self._revision = 0
        self._following: asyncio.Task[None] | None = None
        self._is_away = False

    async def start(self) -> None:
        """Look once, then go on in the background. A fleet whose pools load nothing on demand needs no
        registry."""
        if any(pool.highest_rank for pool in self._declared.pools):
            await self._look()
            self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """A store that is away, or fails: calls go on with what was known."""
        try:
            revision = await asyncio.to_thread(self._registry.revision)
            if revision != self._revision:
                versions = await asyncio.to_thread(self._registry.usable)
                self.router = self.router.with_view(self._declared.with_registered(versions))
                self._revision = revision
        except SpratError as error:
            if not self._is_away:
                logger.warning("the registry of adapters cannot be read: %s", error)
            self._is_away = True
        except Exception:
            logger.exception("the registry of adapters cannot be read")
        else:
            self._is_away = False
