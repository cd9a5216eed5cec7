"""The fleet as a gateway last saw it: for prefix affinity, and for routing while Redis is away."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from cluster.types import PoolLoad, ReplicaPhase, ReplicaState

PREFIX_BYTES = 2048


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Ready replicas per pool. `rings` place them on a hash ring, so that a replica that comes or goes moves
    only its neighbours' prefixes."""

    ready: Mapping[str, tuple[ReplicaState, ...]] = field(default_factory=dict)
    rings: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    gateways: int = 1

    @classmethod
    def of(cls, loads: Mapping[str, PoolLoad], gateways: int) -> FleetSnapshot:
        ready = {
            pool: tuple(each for each in load.replicas if each.phase is ReplicaPhase.READY)
            for pool, load in loads.items()
        }
        rings = {
            pool: tuple(sorted((_point(each.replica_id), each.replica_id) for each in replicas))
            for pool, replicas in ready.items()
        }
        return cls(ready, rings, max(1, gateways))

    def affine_replica(self, pool: str, prefix: str) -> str:
        """The replica that calls with this prompt prefix should share; "" where there is no choice."""
        ring = self.rings.get(pool, ())
        if len(ring) < 2:
            return ""
        return ring[bisect(ring, (_point(prefix[:PREFIX_BYTES]), "")) % len(ring)][1]

    @property
    def any_ready(self) -> bool:
        return any(self.ready.values())


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
