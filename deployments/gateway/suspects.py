"""Replicas that just failed here. The directory takes a dead one out after 3 s (its missing heartbeat); until
then every call that was sent there would lose up to the connect timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cluster.scheduler.snapshot import FleetSnapshot

SUSPECT_S = 3.0


class Suspects:
    """One per gateway. A pool is never left without a replica to ask because of it."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._until_s: dict[str, float] = {}

    def failed(self, replica_id: str) -> None:
        self._until_s[replica_id] = self._clock_s() + SUSPECT_S

    def answered(self, replica_id: str) -> None:
        if self._until_s:
            self._until_s.pop(replica_id, None)

    def __bool__(self) -> bool:
        """Nearly never."""
        return bool(self._until_s)

    def to_avoid(self, pools: Iterable[str], snapshot: FleetSnapshot) -> tuple[str, ...]:
        """Of those pools."""
        now_s = self._clock_s()
        self._until_s = {id_: until_s for id_, until_s in self._until_s.items() if until_s > now_s}
        avoided: list[str] = []
        for pool in pools:
            ready = [each.replica_id for each in snapshot.ready.get(pool, ())]
            suspect = [id_ for id_ in ready if id_ in self._until_s]
            if len(suspect) < len(ready):
                avoided += suspect
        return tuple(avoided)
