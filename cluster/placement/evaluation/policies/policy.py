"""What a policy is asked in the simulation, and what it may know: arrivals, and the replicas as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.placement.evaluation.replica import Call, SimulatedReplica


class PlacementPolicy(Protocol):
    """`tick_s`: how often `tick` is asked; 0: never."""

    tick_s: float

    def choose(self, call: Call, now_s: float) -> int | None:
        """The replica that takes the call, with a free request slot; None: it waits."""
        ...

    def retry_s(self, call: Call) -> float | None:
        """How long a call that waits stays away before it asks again; None: it stands in one line for the
        whole fleet and is asked for when a slot comes free."""
        ...

    def victim(self, replica: SimulatedReplica, newcomer: int, for_call: bool) -> int | None:
        """The idle adapter that leaves, or None where none may."""
        ...

    def ended(self, call: Call) -> None:
        """A call has run."""
        ...

    def tick(self, now_s: float) -> None: ...

    def popularity(self, shares: NDArray[np.float64], calls_per_s: float, now_s: float) -> None:
        """The truth, told at each change. Only an oracle may listen."""
        ...


class Plain:
    """Neither ticks nor learns; least recently used leaves; waiting calls stand in line."""

    tick_s = 0.0

    def __init__(self, replicas: Sequence[SimulatedReplica]) -> None:
        self.replicas = replicas

    def retry_s(self, _call: Call) -> float | None:
        return None

    def victim(self, replica: SimulatedReplica, _newcomer: int, _for_call: bool) -> int | None:
        return next((adapter for adapter in replica.loaded if adapter not in replica.users), None)

    def ended(self, _call: Call) -> None:
        return None

    def tick(self, _now_s: float) -> None:
        return None

    def popularity(self, _shares: NDArray[np.float64], _calls_per_s: float, _now_s: float) -> None:
        return None
