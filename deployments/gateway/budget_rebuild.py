"""Brings what the ledger knows of a budget into Redis: before the first call draws on it in an epoch, and
again whenever Redis may know less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from cluster.ledger import Ledger, SumName
from cluster.scheduler.scheduler import Scheduler
from cluster.types import BudgetLine

LINES_KEPT = 10_000
"""Budgets of earlier calls that are raised without being asked for; an older one waits for its next call."""


class BudgetRebuild:
    """`epoch` is the one this gateway has seen last; "" before the first and after data loss.

    A budget is raised to the ledger's sum once per gateway, and again when a call was booked that Redis did
    not know, or when Redis was away: it may have come back without its last seconds. `Scheduler.rebuild`
    takes the maximum, so it does not matter how many gateways do so (LiteLLM #28247).
    """

    def __init__(self, scheduler: Scheduler, ledger: Ledger, grace_ms: int) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._grace_ms = grace_ms
        self._lines: dict[SumName, BudgetLine] = {}
        self._raised: set[SumName] = set()
        self._doubted: set[SumName] = set()
        self._raising = asyncio.Lock()
        self.epoch = ""

    @property
    def epoch_id(self) -> str:
        return self.epoch.partition("|")[2]

    @property
    def is_open(self) -> bool:
        return self.epoch.startswith("open|")

    def saw(self, epoch: str) -> bool:
        """Of a renewal. True: it is another epoch than before, and what this gateway holds must be brought
        back."""
        if epoch and epoch.partition("|")[2] == self.epoch_id:
            self.epoch = epoch
            return False
        self.doubt_all()
        self.epoch = epoch
        return True

    def doubt_all(self) -> None:
        self._doubted.update(self._raised)
        self._raised.clear()

    def doubt(self, names: Iterable[SumName]) -> None:
        """Redis did not know a call that was booked on these budgets."""
        self._doubted.update(names)
        self._raised.difference_update(names)

    async def advance(self) -> None:
        """Begin or open the epoch. Raises SchedulerUnavailable."""
        self.epoch = await self._scheduler.rebuild((), self._grace_ms)

    def misses(self, lines: Sequence[BudgetLine]) -> bool:
        """Whether `ensure` has something to do for them."""
        return not self._raised.issuperset([(line.owner, line.window) for line in lines])

    async def ensure(self, lines: Sequence[BudgetLine]) -> None:
        """Raises SchedulerUnavailable, or StoreUnavailable: a budget that is not known must not be drawn
        on."""
        if self._missing(lines):
            async with self._raising:
                if not self.epoch:
                    await self.advance()
                await self._raise(self._missing(lines))

    async def raise_doubtful(self) -> None:
        """Those of earlier calls that are in doubt."""
        await self.ensure(tuple(self._lines.values()))

    def _missing(self, lines: Sequence[BudgetLine]) -> list[BudgetLine]:
        return [line for line in lines if line.owner_and_window not in self._raised]

    async def _raise(self, lines: Sequence[BudgetLine]) -> None:
        if not lines:
            return
        epoch_id = self.epoch_id
        self._doubted.clear()
        names = [line.owner_and_window for line in lines]
        sums = await asyncio.to_thread(self._ledger.spent, names)
        epoch = await self._scheduler.rebuild(
            [(line, sums[line.owner_and_window]) for line in lines], self._grace_ms
        )
        self._lines.update(zip(names, lines, strict=True))
        while len(self._lines) > LINES_KEPT:
            del self._lines[next(iter(self._lines))]
        if epoch.partition("|")[2] == epoch_id == self.epoch_id:
            self._raised.update(set(names) - self._doubted)  # a doubt that came meanwhile stands
