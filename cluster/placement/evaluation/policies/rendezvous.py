"""Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni, Thorup and Zadimoghaddam
2018): an adapter's replicas stand in an order of its own, the first below the bound takes the call. The least
recently used leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from cluster.placement.evaluation.policies.policy import Plain
from cluster.placement.evaluation.replica import Call, SimulatedReplica

BOUND = 1.25
"""Of the mean of outstanding calls, this call included."""


class Rendezvous(Plain):
    def __init__(self, replicas: Sequence[SimulatedReplica]) -> None:
        super().__init__(replicas)
        self._orders: dict[int, list[SimulatedReplica]] = {}

    def choose(self, call: Call, _now_s: float) -> int | None:
        order = self._orders.get(call.adapter)
        if order is None:
            order = sorted(self.replicas, key=lambda each: _weight(call.adapter, each.index))
            self._orders[call.adapter] = order
        outstanding = 1 + sum(each.outstanding for each in self.replicas)
        bound = math.ceil(BOUND * outstanding / len(self.replicas))
        for limit in (bound, math.inf):
            for each in order:
                if not each.is_full and each.outstanding < limit:
                    return each.index
        return None


def _weight(adapter: int, replica: int) -> bytes:
    return blake2b(f"{adapter} {replica}".encode(), digest_size=8).digest()
