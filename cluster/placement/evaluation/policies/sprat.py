"""Ours: the replica by price, as the scheduler chooses it; the desired sets by `place_adapters` per tick.
Of the adapters on a replica the least wanted leaves. And the oracle: the same, told the true popularity."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from cluster.placement.adapters import (
    TICK_S,
    AdapterNeed,
    Held,
    PlacementSettings,
    ReplicaPlaces,
    place_adapters,
)
from cluster.placement.demand import (
    AdapterDemand,
    Demand,
    Forgetting,
    Uses,
    observe,
    remembered_calls_for,
)
from cluster.placement.evaluation.policies.policy import Plain
from cluster.placement.evaluation.replica import Call, SimulatedReplica

LOOK_AT = 4
"""Least busy replicas and holders that the scheduler compares."""

BASE, RANK = "base", 16
_BY_LOAD = attrgetter("outstanding", "index")


class Sprat(Plain):
    """`load_price_s`: the load of a cold adapter in the price of a replica, in seconds of delay
    (`scheduler.adapter_load_s`)."""

    tick_s = TICK_S

    def __init__(
        self,
        replicas: Sequence[SimulatedReplica],
        *,
        adapters: int,
        service_s: float,
        load_price_s: float,
        settings: PlacementSettings,
    ) -> None:
        super().__init__(replicas)
        self._names = [f"a{adapter:06d}@1" for adapter in range(adapters)]
        self._replica_names = [f"r{each.index:04d}" for each in replicas]
        self._delay_per_call_s = service_s / replicas[0].calls_at_once
        self._load_price_s = load_price_s
        self._settings = settings
        self._forgetting = Forgetting(remembered_calls_for(sum(each.slots for each in replicas)))
        self._demand = Demand()
        self._calls: dict[int, int] = {}
        self._busy_s: dict[int, float] = {}
        self._desired: dict[str, tuple[str, ...]] = {}
        self._wanted: list[dict[int, int]] = [{} for _ in replicas]
        """Per replica: adapter → its place in the order of the desired set."""

    # The scheduler.

    def choose(self, call: Call, _now_s: float) -> int | None:
        free = [each for each in self.replicas if not each.is_full]
        holders = [each for each in free if each.holds(call.adapter)]
        looked_at = {
            each.index: each
            for each in (*nsmallest(LOOK_AT, free, _BY_LOAD), *nsmallest(LOOK_AT, holders, _BY_LOAD))
        }

        def price(replica: SimulatedReplica) -> tuple[float, int, int]:
            load_s = 0.0
            if not replica.holds(call.adapter):
                loads_under_way = len(replica.queue) + (replica.loading is not None)
                load_s = self._load_price_s * (1 + loads_under_way)
            return replica.outstanding * self._delay_per_call_s + load_s, replica.outstanding, replica.index

        chosen = min(looked_at.values(), key=price, default=None)
        return None if chosen is None else chosen.index

    # The replica.

    def victim(self, replica: SimulatedReplica, _newcomer: int, for_call: bool) -> int | None:
        """Undesired first, the longest unused; desired ones leave for calls only, the least wanted first."""
        idle = replica.idle()
        wanted = self._wanted[replica.index]
        unwanted = next((adapter for adapter in idle if adapter not in wanted), None)
        if unwanted is not None or not for_call:
            return unwanted
        return max(idle, key=wanted.__getitem__, default=None)

    # The controller.

    def ended(self, call: Call) -> None:
        self._calls[call.adapter] = self._calls.get(call.adapter, 0) + 1
        self._busy_s[call.adapter] = self._busy_s.get(call.adapter, 0.0) + call.service_s

    def tick(self, now_s: float) -> None:
        uses = {self._names[each]: Uses(count, self._busy_s[each]) for each, count in self._calls.items()}
        self._calls.clear()
        self._busy_s.clear()
        self._demand = observe(self._demand, uses, round(now_s * 1000), self._forgetting)
        self._place(self._demand.per_adapter())

    def _place(self, demand: dict[str, AdapterDemand]) -> None:
        placed = place_adapters(
            [AdapterNeed(name, BASE, RANK, each) for name, each in demand.items()],
            [self._places(each) for each in self.replicas],
            self._desired,
            self._settings,
        )
        self._desired = dict(placed.desired)
        for each, name in zip(self.replicas, self._replica_names, strict=True):
            wanted = [_number(adapter) for adapter in self._desired[name]]
            self._wanted[each.index] = {adapter: order for order, adapter in enumerate(wanted)}
            each.ahead.clear()
            each.ahead.extend(adapter for adapter in wanted if not each.holds(adapter))

    def _places(self, replica: SimulatedReplica) -> ReplicaPlaces:
        held = {self._names[adapter]: Held.LOADED for adapter in replica.loaded}
        held |= {self._names[adapter]: Held.LOADING for adapter in replica.waiting}
        if replica.loading is not None:
            held[self._names[replica.loading]] = Held.LOADING
        return ReplicaPlaces(
            self._replica_names[replica.index], BASE, replica.slots, RANK, replica.calls_at_once, held=held
        )


class Oracle(Sprat):
    """Knows the true popularity from the moment of each change."""

    _true: dict[str, AdapterDemand]

    def popularity(self, shares: NDArray[np.float64], calls_per_s: float, now_s: float) -> None:
        service_s = self._delay_per_call_s * self.replicas[0].calls_at_once
        self._true = {
            name: AdapterDemand(float(share) * calls_per_s, service_s)
            for name, share in zip(self._names, shares, strict=True)
        }
        self.tick(now_s)

    def tick(self, _now_s: float) -> None:
        self._place(self._true)


def _number(name: str) -> int:
    return int(name[1:].partition("@")[0])
