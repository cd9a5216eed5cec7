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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.errors import SchedulerUnavailable, SpratError
from cluster.ledger import Ledger, LedgerEntry
from cluster.scheduler.scheduler import Scheduler
from cluster.types import SettleRequest
from deployments.gateway.journal import Journal, Position
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
BATCH = 2_000
UNSENT = 10_000
"""Cancellations that are kept while Redis is away; older ones are left to `reap`."""

KNOWN_TO_REDIS = 20_000
"""Acknowledged settles that are remembered until they are copied. Beyond it they are sent again, which is
harmless: memory stays flat when the ledger's database is away (LiteLLM #38193)."""


_Settle = tuple[SettleRequest, Mapping[str, Any] | None]
"""And the fields of its ledger entry, if it costs something."""

_Outgoing = tuple[SettleRequest, Position | None]
"""And where it stands in the journal, if it does."""


class Settling:
    """One per gateway process. `settle` never waits and never fails a call."""

    def __init__(
        self,
        scheduler: Scheduler,
        ledger: Ledger,
        journal: Journal,
        folder: Path,
        doubt: Callable[[Iterable[tuple[str, str]]], None],
    ) -> None:
        """`doubt` hears of budgets that a call was booked on which Redis did not know."""
        self._doubt = doubt
        self._scheduler = scheduler
        self._ledger = ledger
        self._journal = journal
        self._folder = folder
        self._at = journal.begin
        self._acknowledged: set[Position] = set()
        self._outbox: list[_Settle] = []
        self._in_flight: set[Position] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._open = 0
        self._unsent: deque[SettleRequest] = deque(maxlen=UNSENT)
        self._copying = asyncio.Lock()
        self._ledger_reachable = True
        self._tasks = (asyncio.create_task(self._sync_loop()), asyncio.create_task(self._copy_loop()))

    def has_room(self) -> bool:
        """False: a call could not be booked, so it must not be made."""
        return self._journal.has_room()

    def settle(self, request: SettleRequest, entry: Mapping[str, Any]) -> None:
        """`entry`: the fields of a LedgerEntry, which checks them when they are copied."""
        self._put_out(request, entry)

    def cancel(self, request: SettleRequest) -> None:
        """A call that never ran: no money, so no journal. Should Redis never hear of it, `reap` refunds
        it."""
        self._put_out(request, None)

    def lost(self, entry: LedgerEntry) -> None:
        """A charge that `reap` made: Redis has it already."""
        try:
            self._acknowledge(self._journal.append({"entry": entry}))
        except SpratError as error:
            logger.error("the charge of lost call %s is not in the journal: %s", entry.request_id, error)  # noqa: TRY400

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
        async with self._copying:
            while True:
                end = self._journal.end
                if self._at >= end:
                    return True
                after = await self._copy(self._journal, self._at)
                if after == self._at:
                    return False  # Redis or the database is away
                self._at = after

    async def close(self) -> None:
        self._start_sending()
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=5)
        for task in self._tasks:
            await end_task(task)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self.flush()
        await asyncio.to_thread(self._journal.sync)
        self._journal.close(remove_if_empty=True)

    # Redis.

    def _put_out(self, request: SettleRequest, entry: Mapping[str, Any] | None) -> None:
        self._open += 1
        if not self._outbox:
            asyncio.get_running_loop().call_later(GATHER_S, self._start_sending)
        self._outbox.append((request, entry))

    def _start_sending(self) -> None:
        outbox, self._outbox = self._outbox, []
        if not outbox:
            return
        portions = [self._journalled(outbox[at : at + AT_ONCE]) for at in range(0, len(outbox), AT_ONCE)]
        task = asyncio.create_task(self._send(portions))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _journalled(self, settles: Sequence[_Settle]) -> list[_Outgoing]:
        """To disk first."""
        records = [{"settle": request, "entry": entry} for request, entry in settles if entry is not None]
        positions: Iterator[Position | None] = iter(())
        if records:
            try:
                positions = iter(self._journal.append_all(records))
            except SpratError as error:
                # Redis still hears of them; only a second failure, of Redis, would lose these calls' money.
                logger.error("%d settles are not in the journal: %s", len(records), error)  # noqa: TRY400
        outgoing = [
            (request, next(positions, None) if entry is not None else None) for request, entry in settles
        ]
        self._in_flight.update(position for _, position in outgoing if position is not None)
        return outgoing

    async def _send(self, portions: Sequence[Sequence[_Outgoing]]) -> None:
        for outgoing in portions:
            await self._send_some(outgoing)

    async def _send_some(self, outgoing: Sequence[_Outgoing]) -> None:
        try:
            settlements = await self._scheduler.settle_all([request for request, _ in outgoing])
        except SchedulerUnavailable:
            # What is in the journal is sent again by the copy loop. As for the others: a store that hung may
            # still carry out the admission that was given up here, and its slot would be taken until the
            # lease runs out.
            self._unsent.extend(request for request, position in outgoing if position is None)
        else:
            for (_, position), settlement in zip(outgoing, settlements, strict=True):
                if position is not None and settlement is not None:
                    self._acknowledge(position)
        finally:
            self._open -= len(outgoing)
            self._in_flight.difference_update(position for _, position in outgoing if position is not None)

    async def _send_unsent(self) -> None:
        while self._unsent:
            try:
                await self._scheduler.settle(self._unsent[0])
            except SchedulerUnavailable:
                return
            self._unsent.popleft()

    def _acknowledge(self, position: Position) -> None:
        if len(self._acknowledged) < KNOWN_TO_REDIS:
            self._acknowledged.add(position)

    # Ledger.

    async def _copy(self, journal: Journal, at: Position) -> Position:
        """One batch: to Redis what it has not acknowledged, then to the ledger, then out of the journal.
        Returns how far it came. In threads as far as it goes, and in few of them: each costs the event loop
        two switches."""
        end = journal.end
        records = await asyncio.to_thread(_read, journal, at)
        if not records:
            await asyncio.to_thread(journal.drop_before, end)
            return end  # what is left is damaged
        own = journal is self._journal
        entries: list[LedgerEntry] = []
        unknown: set[tuple[str, str]] = set()
        reached = at
        for position, settle, booked in records:
            if own and position in self._in_flight:
                break  # its answer is on the way
            if settle is not None and not (own and position in self._acknowledged):
                request = settle_request_of(settle)
                try:
                    if await self._scheduler.settle(request) is None:
                        unknown.update(request.budgets)
                except SchedulerUnavailable:
                    break
            entries += booked
            reached = position
        if reached == at or not await self._book(journal, entries, reached):
            return at
        self._doubt(unknown)
        if own:
            self._acknowledged.difference_update(
                position for position, _, _ in records if position <= reached
            )
        return reached

    async def _book(self, journal: Journal, entries: Sequence[LedgerEntry], reached: Position) -> bool:
        def book() -> None:
            if entries:
                self._ledger.append(entries)
            journal.drop_before(reached)

        try:
            await asyncio.to_thread(book)
        except SpratError as error:
            if self._ledger_reachable:
                logger.warning("the ledger is not reachable, the journal keeps what is owed: %s", error)
            self._ledger_reachable = False
            return False
        if not self._ledger_reachable:
            logger.warning("the ledger is reachable again")
        self._ledger_reachable = True
        return True

    async def _copy_loop(self) -> None:
        next_adoption = 0.0
        while True:
            try:
                await self._send_unsent()
                await self.flush()
                if time.monotonic() >= next_adoption:
                    next_adoption = time.monotonic() + ADOPT_PERIOD_S
                    await self._copy_orphans()
            except Exception:  # a loop that ends silently would fill the disk
                logger.exception("the journal could not be copied this time")
            await asyncio.sleep(COPY_PERIOD_S)

    async def _copy_orphans(self) -> None:
        """What gateways that died on this node left behind."""
        for orphan in await asyncio.to_thread(Journal.adopt_orphans, self._folder):
            at = orphan.begin
            while at < orphan.end:
                after = await self._copy(orphan, at)
                if after == at:
                    break
                at = after
            if at >= orphan.end:
                await asyncio.to_thread(orphan.remove)
            else:
                await asyncio.to_thread(orphan.close)

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


def _read(
    journal: Journal, after: Position
) -> list[tuple[Position, dict[str, Any] | None, list[LedgerEntry]]]:
    """In a thread: the settle of each record, if it has one, and what is to be booked."""
    records = journal.read(after, BATCH)
    return [(position, record.get("settle"), _entries_of(record)) for position, record in records]


def _entries_of(record: dict[str, Any]) -> list[LedgerEntry]:
    try:
        return [LedgerEntry(**record["entry"])]
    except (TypeError, ValueError):
        # One record that no database would take must not hold up all that come after it.
        logger.exception("a record of the journal cannot be booked: %s", record.get("entry"))
        return []


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
