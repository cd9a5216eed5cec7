"""Calls of this gateway that wait for a slot: woken by the store's message, or by the next poll."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cluster.errors import SchedulerUnavailable
from cluster.types import Grant, Waiting


@dataclass(slots=True)
class _Place:
    waiting: Waiting
    answer: asyncio.Future[Grant | None]


class WaitingRoom:
    """A call is in here from the answer `Waiting` until it was granted a slot, gave up or ran out of time."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    async def wait(self, waiting: Waiting, timeout_s: float) -> Grant | None:
        """None: the time is over, here or in the store. Raises SchedulerUnavailable when the store went away:
        nobody would be told of a grant."""
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

    def candidate_of(self, request_id: str) -> Waiting | None:
        place = self._places.get(request_id)
        return place.waiting if place is not None else None

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
