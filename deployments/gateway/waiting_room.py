"""Calls of this gateway that wait for a slot: woken by the store's message, or by the next poll."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from cluster.errors import SchedulerUnavailable
from cluster.scheduler.redis_scheduler import GrantNotice
from cluster.types import Grant, Waiting

EARLY_KEPT = 1_000
"""Of those that nobody came for, the poll knows too."""


@dataclass(slots=True)
class _Place:
    waiting: Waiting
    answer: asyncio.Future[Grant | None]


class WaitingRoom:
    """A call is in here from the answer `Waiting` until it was granted a slot, gave up or ran out of time."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._early: OrderedDict[str, GrantNotice] = OrderedDict()

    async def wait(self, waiting: Waiting, timeout_s: float) -> Grant | None:
        """None: the time is over, here or in the store. Raises SchedulerUnavailable when the store went away:
        nobody would be told of a grant."""
        early = self._early.pop(waiting.request_id, None)
        if early is not None and early.step == waiting.step:
            return early.grant_of(waiting.candidate)
        place = _Place(waiting, asyncio.get_running_loop().create_future())
        self._places[waiting.request_id] = place
        try:
            return await asyncio.wait_for(place.answer, timeout_s)
        except TimeoutError:
            return None
        finally:
            self._places.pop(waiting.request_id, None)

    @property
    def waiting(self) -> list[Waiting]:
        return [place.waiting for place in self._places.values()]

    def __len__(self) -> int:
        return len(self._places)

    def tell(self, request_id: str, answer: Grant | Waiting | None) -> None:
        """What became of a waiter. News of a step that is over, or of a call that has left, are dropped: the
        call's own end gives the slot back."""
        place = self._places.get(request_id)
        if place is None or place.answer.done() or isinstance(answer, Waiting):
            return
        if answer is None or answer.step == place.waiting.step:
            place.answer.set_result(answer)

    def granted(self, notice: GrantNotice) -> None:
        """The message may overtake the answer that said to wait: then it is kept for the call to find."""
        place = self._places.get(notice.request_id)
        if place is not None:
            self.tell(notice.request_id, notice.grant_of(place.waiting.candidate))
            return
        self._early[notice.request_id] = notice
        if len(self._early) > EARLY_KEPT:
            self._early.popitem(last=False)

    def dissolve(self) -> None:
        """The store is away."""
        for place in self._places.values():
            if not place.answer.done():
                place.answer.set_exception(
                    SchedulerUnavailable(
                        "The scheduler's store went away while this call waited. Try again.",
                        retry_after_s=1.0,
                    )
                )
