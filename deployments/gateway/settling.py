"""The end of every call: journal, Redis, ledger, in this order, each exactly once.

A settle is on this node's disk a millisecond after its call, and before it is sent. Redis hears of it at
once, and again until it answered; the SQL ledger gets it after that. So whatever the ledger holds is in
Redis' books too, or Redis does not know the request: that is why raising Redis to the ledger's sums
(`Scheduler.rebuild`) can never count a call twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cluster.errors import SchedulerUnavailable, SpratError
from cluster.ledger import LedgerEntry
from cluster.scheduler.scheduler import Scheduler
from cluster.types import SettleRequest
from deployments.gateway.journal import Journal, Position
from deployments.gateway.ledger_copy import LedgerCopy
from deployments.gateway.tasks import end_task

logger = logging.getLogger("ray.serve")

COPY_PERIOD_S = 1.0
SYNC_PERIOD_S = 0.05
"""What a machine that loses power may lose. A gateway that is killed loses `GATHER_S`."""

GATHER_S = 0.001
"""Settles of so long leave together: to the disk, then to Redis. A gateway that is killed before loses them;
their holds stay, and `reap` charges them."""

AT_ONCE = 64
"""But not more: admissions stand behind them."""

ADOPT_PERIOD_S = 30.0
LOOK_AT_DISK_S = 1.0
UNSENT = 10_000
"""Cancellations that are kept while Redis is away; older ones are left to `reap`."""


_Settle = tuple[SettleRequest, Mapping[str, Any] | None]
"""And what else its record in the journal holds, if it costs something."""

_Portion = tuple[list[_Settle], Position | None]
"""And the position behind them in the journal, if they stand there."""


class Settling:
    """One per gateway process. `settle` never waits and never fails a call."""

    def __init__(self, scheduler: Scheduler, journal: Journal, ledger: LedgerCopy) -> None:
        """`ledger` copies `journal`."""
        self._scheduler = scheduler
        self._journal = journal
        self._ledger = ledger
        self._outbox: list[_Settle] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._open = 0
        self._unsent: deque[SettleRequest] = deque(maxlen=UNSENT)
        self._loop = asyncio.get_running_loop()
        self._tasks = (asyncio.create_task(self._sync_loop()), asyncio.create_task(self._copy_loop()))

    def has_room(self) -> bool:
        """False: a call could not be booked, so it must not be made."""
        return self._journal.has_room()

    def settle(
        self, request: SettleRequest, entry: Mapping[str, Any], decision: Mapping[str, Any] | None = None
    ) -> None:
        """`entry` has the fields of a LedgerEntry, `decision` those of a row of the decision log; both are
        checked when they are copied."""
        self._put_out(
            request, {"entry": entry} if decision is None else {"entry": entry, "decision": decision}
        )

    def cancel(self, request: SettleRequest) -> None:
        """A call that never ran: no money, so no journal. Should Redis never hear of it, `reap` refunds
        it."""
        self._put_out(request, None)

    def lost(self, entry: LedgerEntry) -> None:
        """A charge that `reap` made: Redis has it already."""
        try:
            position = self._journal.append({"entry": entry})
        except SpratError as error:
            logger.error("the charge of lost call %s is not in the journal: %s", entry.request_id, error)  # noqa: TRY400
            return
        self._ledger.known.sent(position)
        self._ledger.known.answered(position, knows=True)

    @property
    def journal_bytes(self) -> int:
        """Of calls that are not in the ledger yet."""
        return self._journal.bytes_kept

    @property
    def open(self) -> int:
        """Settles that Redis has not been told of, or has not answered yet."""
        return self._open

    def alive(self) -> bool:
        return not any(task.done() for task in self._tasks)

    async def flush(self) -> bool:
        """Copy everything that has ended by now; False when Redis or the database does not answer."""
        self._start_sending()
        return await self._ledger.flush()

    async def close(self) -> None:
        self._start_sending()
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=5)
        for task in self._tasks:
            await end_task(task)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self.flush()
        await self._ledger.close()
        await asyncio.to_thread(self._journal.sync)
        self._journal.close(remove_if_empty=True)

    # Redis.

    def _put_out(self, request: SettleRequest, record: Mapping[str, Any] | None) -> None:
        self._open += 1
        if not self._outbox:
            self._loop.call_later(GATHER_S, self._start_sending)
        self._outbox.append((request, record))

    def _start_sending(self) -> None:
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        portions = [self._journalled(outbox[at : at + AT_ONCE]) for at in range(0, len(outbox), AT_ONCE)]
        task = self._loop.create_task(self._send(portions))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _journalled(self, settles: list[_Settle]) -> _Portion:
        """To disk first."""
        records = [{"settle": request, **record} for request, record in settles if record is not None]
        if not records:
            return settles, None
        try:
            end = self._journal.append_all(records)
        except SpratError as error:
            # Redis still hears of them; only a second failure, of Redis, would lose these calls' money.
            logger.error("%d settles are not in the journal: %s", len(records), error)  # noqa: TRY400
            return settles, None
        self._ledger.known.sent(end)
        return settles, end

    async def _send(self, portions: Sequence[_Portion]) -> None:
        for settles, end in portions:
            await self._send_some(settles, end)

    async def _send_some(self, settles: Sequence[_Settle], end: Position | None) -> None:
        knows = False
        try:
            settlements = await self._scheduler.settle_all([request for request, _ in settles])
        except SchedulerUnavailable:
            # What is in the journal is sent again by the copy loop. As for the others: a store that hung may
            # still carry out the admission that was given up here, and its slot would be taken until the
            # lease runs out.
            self._unsent.extend(request for request, record in settles if end is None or record is None)
        else:
            knows = None not in settlements
        finally:
            self._open -= len(settles)
            if end is not None:
                self._ledger.known.answered(end, knows=knows)

    async def _send_unsent(self) -> None:
        while self._unsent:
            try:
                await self._scheduler.settle(self._unsent[0])
            except SchedulerUnavailable:
                return
            self._unsent.popleft()

    # By the clock.

    async def _copy_loop(self) -> None:
        next_adoption = 0.0
        while True:
            try:
                await self._send_unsent()
                await self.flush()
                if time.monotonic() >= next_adoption:
                    next_adoption = time.monotonic() + ADOPT_PERIOD_S
                    await self._ledger.copy_orphans()
            except Exception:  # a loop that ends silently would fill the disk
                logger.exception("the journal could not be copied this time")
            await asyncio.sleep(COPY_PERIOD_S)

    async def _sync_loop(self) -> None:
        look_s = 0.0  # also at how full the disk is
        while True:
            await asyncio.sleep(SYNC_PERIOD_S)
            if not self._journal.wants_sync and time.monotonic() < look_s:
                continue
            look_s = time.monotonic() + LOOK_AT_DISK_S
            try:
                await asyncio.to_thread(self._journal.sync)
            except (OSError, SpratError):
                logger.exception("the journal could not be written to disk this time")
