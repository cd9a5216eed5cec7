"""The least busy replica that has the adapter, else the least busy one; the least recently used leaves."""

from __future__ import annotations

from cluster.placement.evaluation.policies.policy import Plain
from cluster.placement.evaluation.replica import Call


class PreferLoaded(Plain):
    def choose(self, call: Call, _now_s: float) -> int | None:
        free = [each for each in self.replicas if not each.is_full]
        holders = [each for each in free if each.holds(call.adapter)]
        chosen = min(holders or free, key=lambda each: (each.outstanding, each.index), default=None)
        return None if chosen is None else chosen.index
