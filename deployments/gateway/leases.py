"""Keeps the leases of running calls alive and settles ended ones, whatever happens to the call."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from cluster.errors import SchedulerUnavailable
from cluster.scheduler.scheduler import Scheduler
from cluster.types import Grant, Usage

logger = logging.getLogger("ray.serve")

LEASE_TTL_MS = 15_000
SETTLE_RETRY_S = (0.1, 0.5, 2.0, 5.0, 15.0)


class LeaseKeeper:
    """One per gateway: renews every third of the TTL, settles in the background, reaps the leases of
    gateways that died. `close` waits until every settle has been sent."""

    def __init__(self, scheduler: Scheduler, pools: tuple[str, ...]) -> None:
        self._scheduler = scheduler
        self._pools = pools
        self._live: dict[str, Grant] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._ticking = asyncio.create_task(self._tick())

    def hold(self, grant: Grant) -> None:
        self._live[grant.request_id] = grant

    def settle(self, request_id: str, pools: tuple[str, ...], usage: Usage) -> None:
        """Not awaited by the call: a cancelled request settles like a finished one. A request that was
        never admitted costs a round trip and changes nothing."""
        self._live.pop(request_id, None)
        task = asyncio.create_task(self._settle(request_id, pools, usage))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    @property
    def running(self) -> int:
        """Calls that hold a lease."""
        return len(self._live)

    def alive(self) -> bool:
        return not self._ticking.done()

    async def close(self) -> None:
        self._ticking.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticking
        if self._settling:
            await asyncio.wait(self._settling, timeout=10)

    async def _settle(self, request_id: str, pools: tuple[str, ...], usage: Usage) -> None:
        for pause_s in (*SETTLE_RETRY_S, None):
            try:
                await self._scheduler.settle(request_id, pools, usage)
            except SchedulerUnavailable:
                if pause_s is None:
                    break
                await asyncio.sleep(pause_s)
            else:
                return
        # The lease ends by itself; the money of this call is lost until the journal exists (next issue).
        logger.error(
            "settle of %s did not reach Redis: %d prompt and %d output tokens are not booked",
            request_id,
            usage.prompt_tokens,
            usage.output_tokens,
        )

    async def _tick(self) -> None:
        reachable = True
        while True:
            await asyncio.sleep(LEASE_TTL_MS / 3000)
            try:
                await self._renew()
                await self._scheduler.reap(self._pools)
            except SchedulerUnavailable as error:
                if reachable:
                    logger.warning("leases are not renewed: %s", error)
                reachable = False
            except Exception:  # a loop that ends silently would lose every lease of this gateway
                logger.exception("leases could not be renewed this time")
            else:
                reachable = True

    async def _renew(self) -> None:
        grants = list(self._live.values())
        if not grants:
            return
        for grant, kept in zip(grants, await self._scheduler.renew(grants, LEASE_TTL_MS), strict=True):
            # A retry may hold a newer grant of the same request by now.
            if not kept and self._live.get(grant.request_id) is grant:
                logger.warning("lease of %s was lost; the call goes on and is settled once", grant.request_id)
                self._live.pop(grant.request_id, None)
