"""Ray Serve's `@serve.multiplexed` behind its default router, by the rules of Ray 2.60's source.

Each attempt looks at a set of replicas and takes of two random ones the one with fewer ongoing requests,
unless both are full. The set is: the replicas with the adapter; if there are none, or all attempts after the
first, those with the fewest adapters; from 1 to 2 s (drawn at each attempt) after the first attempt, once
those with the fewest, then all. The first two attempts follow each other at once, then 25 ms pass, doubling
to 500 ms. A replica unloads the least recently used adapter.

Kinder than Ray itself: the router knows at once what a replica holds (Ray's replicas push it every 100 ms),
how many requests it has, and an adapter in use is not unloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from cluster.placement.evaluation.policies.policy import Plain
from cluster.placement.evaluation.replica import Call, SimulatedReplica

MATCHING_S = 1.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.025, 0.5


class RayLru(Plain):
    def __init__(self, replicas: Sequence[SimulatedReplica], seed: int) -> None:
        super().__init__(replicas)
        self._random = Random(seed)  # noqa: S311 (a simulation)
        self._fell_back: set[int] = set()
        """Adapters whose last match was with replicas that do not have them."""
        self._tried_fewest: set[int] = set()

    def choose(self, call: Call, now_s: float) -> int | None:
        call.attempts += 1
        among = self._candidates(call, now_s)
        if not among:
            return None
        two = among if len(among) == 1 else self._random.sample(among, 2)
        chosen = min(
            (each for each in two if not each.is_full), key=lambda each: each.outstanding, default=None
        )
        if chosen is None:
            return None
        self._tried_fewest.discard(id(call))
        return chosen.index

    def _candidates(self, call: Call, now_s: float) -> Sequence[SimulatedReplica]:
        if now_s - call.arrived_s < MATCHING_S * (1 + self._random.random()):
            holders = [each for each in self.replicas if each.holds(call.adapter)]
            if call.attempts > 1 or (not holders and call.adapter not in self._fell_back):
                self._fell_back.add(call.adapter)
                return self._with_fewest_adapters()
            if holders:
                self._fell_back.discard(call.adapter)
            return holders
        if id(call) not in self._tried_fewest:
            self._tried_fewest.add(id(call))
            return self._with_fewest_adapters()
        return self.replicas

    def _with_fewest_adapters(self) -> Sequence[SimulatedReplica]:
        counts = [len(each.loaded) + len(each.waiting) for each in self.replicas]
        fewest = min(counts)
        return [each for each, count in zip(self.replicas, counts, strict=True) if count == fewest]

    def retry_s(self, call: Call) -> float | None:
        if call.attempts < 2:
            return 0.0
        return float(min(FIRST_BACKOFF_S * 2 ** min(call.attempts - 2, 10), LONGEST_BACKOFF_S))
