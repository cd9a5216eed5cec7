"""From journals to the ledger, batch by batch; what Redis does not know it is told first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster.errors import SchedulerUnavailable, SpratError
from cluster.scheduler.scheduler import Scheduler
from cluster.types import SettleRequest
from deployments.gateway.booking import BATCH, Booked, Booker
from deployments.gateway.journal import Journal, Position
from deployments.gateway.known_to_redis import KnownToRedis

logger = logging.getLogger("ray.serve")


class LedgerCopy:
    """One per gateway: of its own journal, and of those that dead gateways of this node left behind."""

    def __init__(
        self,
        scheduler: Scheduler,
        booker: Booker,
        journal: Journal,
        folder: Path,
        doubt: Callable[[Iterable[tuple[str, str]]], None],
    ) -> None:
        """`doubt` hears of budgets that a call was booked on which Redis did not know."""
        self._scheduler = scheduler
        self._booker = booker
        self._journal = journal
        self._folder = folder
        self._doubt = doubt
        self._at = journal.begin
        self._copying = asyncio.Lock()
        self._ledger_reachable = True
        self.known = KnownToRedis(journal.begin)

    async def flush(self) -> bool:
        """Copy everything that is in the journal by now; False when Redis or the database does not answer."""
        async with self._copying:
            end = self._journal.end  # not what comes meanwhile: under load that would never end
            while self._at < end:
                after = await self._copy_own(self._at)
                if after == self._at:
                    return False
                self._at = after
            return True

    async def copy_orphans(self) -> None:
        for orphan in await asyncio.to_thread(Journal.adopt_orphans, self._folder):
            at = orphan.begin
            while at < orphan.end:
                after = await self._copy_told(orphan, at)
                if after == at:
                    break
                at = after
            if at >= orphan.end:
                await asyncio.to_thread(orphan.remove)
            else:
                await asyncio.to_thread(orphan.close)

    async def close(self) -> None:
        await asyncio.to_thread(self._booker.close)

    async def _copy_own(self, at: Position) -> Position:
        sure = self.known.until()
        if sure <= at:
            return await self._copy_told(self._journal, at)
        booked = await self._book(self._journal, at, sure)
        self._journal.count_damage(booked.reached, booked.damaged)
        return booked.reached

    async def _copy_told(self, journal: Journal, at: Position) -> Position:
        """One batch, of which Redis may not know. Returns how far it came."""
        end = journal.end
        records = await asyncio.to_thread(journal.read, at, BATCH)
        own = journal is self._journal
        reached, unknown = at, set[tuple[str, str]]()
        for position, record in records:
            settle = record.get("settle")
            if own and self.known.is_on_the_way(position):
                break
            if settle is not None and not (own and self.known.is_known(position)):
                request = settle_request_of(settle)
                try:
                    if await self._scheduler.settle(request) is None:
                        unknown.update(request.budgets)
                except SchedulerUnavailable:
                    break
            reached = position
        if not records:
            reached = end  # what is left is damaged
        if reached == at:
            return at
        booked = at
        while booked < reached:
            after, _ = await self._book(journal, booked, reached)
            if after == booked:
                return booked
            booked = after
        self._doubt(unknown)
        if own:
            self.known.passed(reached, is_end=reached >= journal.end)
        return booked

    async def _book(self, journal: Journal, at: Position, until: Position) -> Booked:
        """One transaction; what was booked leaves the journal."""

        def book() -> Booked:
            spans = journal.spans(at, until)
            booked = self._booker.book(spans) if spans else Booked(until, 0)
            journal.drop_before(booked.reached)
            return booked

        try:
            booked = await asyncio.to_thread(book)
        except SpratError as error:
            if self._ledger_reachable:
                logger.warning("the ledger is not reachable, the journal keeps what is owed: %s", error)
            self._ledger_reachable = False
            return Booked(at, 0)
        if not self._ledger_reachable:
            logger.warning("the ledger is reachable again")
        self._ledger_reachable = True
        return booked


def settle_request_of(record: dict[str, Any]) -> SettleRequest:
    """From the journal: JSON knows no tuples."""
    return SettleRequest(
        **(
            record
            | {
                "pools": tuple(record["pools"]),
                "rates": tuple((bucket, back_us) for bucket, back_us in record["rates"]),
                "budgets": tuple((owner, window) for owner, window in record["budgets"]),
            }
        )
    )
