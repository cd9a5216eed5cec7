"""Calls that arrive at simulated replicas under a simulated clock: what an autoscaling rule is worth.

A replica is so many slots, starts after a delay, and drains when it is told to go. Calls take a slot for a
time drawn from an exponential distribution, in the order in which they came.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from cluster.planner.observation import PoolObservation

TICK_S = 0.25


@dataclass
class Outcome:
    """`targets`: what the rule asked for, at every change. `replica_s` counts starting and draining ones too:
    they are paid."""

    waits_s: list[float] = field(default_factory=list)
    targets: list[tuple[float, int]] = field(default_factory=list)
    replica_s: float = 0.0
    lost: int = 0

    def attainment(self, wait_slo_s: float) -> float:
        return sum(wait_s <= wait_slo_s for wait_s in self.waits_s) / len(self.waits_s)

    def turns(self, from_s: float = 0.0) -> int:
        """How often the target stopped going up and went down, or the other way."""
        sizes = [size for at_s, size in self.targets if at_s >= from_s]
        ups = [after > before for before, after in pairwise(sizes)]
        return sum(before != after for before, after in pairwise(ups))


@dataclass
class SimulatedPool:
    """`rate` is in calls per second at a time. Every replica has `slots`; a call takes one for `service_s` on
    average. `rule` sees an observation each `period_s` and says how many replicas there shall be."""

    rate: Callable[[float], float]
    rule: Callable[[PoolObservation, float], int]
    slots: int = 8
    service_s: float = 2.0
    cold_start_s: float = 45.0
    wait_slo_s: float = 5.0
    tokens: int = 100
    period_s: float = 1.0
    target: int = 1
    seed: int = 1

    def run(self, seconds: float, *, measured_from_s: float = 0.0) -> Outcome:
        dice = random.Random(self.seed)
        outcome = Outcome(targets=[(0.0, self.target)])
        ready, starting, draining = self.target, deque[float](), 0
        running: list[float] = []
        queue: deque[float] = deque()
        learned_s: float | None = None
        for tick in range(int(seconds / TICK_S)):
            at_s = tick * TICK_S
            while running and running[0] <= at_s:
                heapq.heappop(running)
            while starting and starting[0] <= at_s:
                starting.popleft()
                ready += 1
            queue.extend([at_s] * _poisson(dice, self.rate(at_s) * TICK_S))
            while queue and len(running) < ready * self.slots:
                came_s = queue.popleft()
                took_s = dice.expovariate(1 / self.service_s)
                learned_s = took_s if learned_s is None else learned_s + (took_s - learned_s) / 8
                heapq.heappush(running, at_s + took_s)
                if came_s >= measured_from_s:
                    outcome.waits_s.append(at_s - came_s)
            if tick % int(self.period_s / TICK_S) == 0:
                late = sum(at_s - came_s > self.wait_slo_s for came_s in queue)
                target = self.rule(
                    PoolObservation(
                        pool="pool",
                        target=self.target,
                        ready=ready,
                        running=len(running),
                        running_tokens=len(running) * self.tokens,
                        waiting=len(queue),
                        waiting_tokens=len(queue) * self.tokens,
                        late=late,
                        wait_slo_s=self.wait_slo_s,
                        service_s=learned_s,
                    ),
                    at_s,
                )
                if target != self.target:
                    outcome.targets.append((at_s, target))
                for _ in range(target - self.target):
                    starting.append(at_s + self.cold_start_s)
                for _ in range(self.target - target):
                    if starting:
                        starting.pop()
                    else:
                        ready -= 1
                self.target = target
            draining = max(0, math.ceil(len(running) / self.slots) - ready)
            if at_s >= measured_from_s:
                outcome.replica_s += (ready + len(starting) + draining) * TICK_S
        outcome.lost = len(queue)
        return outcome


def _poisson(dice: random.Random, mean: float) -> int:
    """Knuth's."""
    limit, product, count = math.exp(-mean), dice.random(), 0
    while product > limit:
        product *= dice.random()
        count += 1
    return count


def sine(mean: float, swing: float, period_s: float) -> Callable[[float], float]:
    """Calls per second; begins at the trough."""
    return lambda at_s: mean - swing * math.cos(2 * math.pi * at_s / period_s)


class RaysRule:
    """What Ray Serve does by itself (`replica_queue_length_autoscaling_policy`): ongoing and queued requests,
    averaged over `look_back_s`, over the requests that one replica shall have; a change must be wanted for
    its whole delay, and is then made to the size wanted last."""

    def __init__(
        self,
        target_ongoing: float,
        bounds: tuple[int, int],
        *,
        up_delay_s: float = 30.0,
        down_delay_s: float = 600.0,
        look_back_s: float = 30.0,
    ) -> None:
        self._target_ongoing = target_ongoing
        self._bounds = bounds
        self._delays_s = {True: up_delay_s, False: down_delay_s}
        self._look_back_s = look_back_s
        self._seen: deque[tuple[float, int]] = deque()
        self._wants: tuple[bool, float] | None = None

    def __call__(self, seen: PoolObservation, at_s: float) -> int:
        self._seen.append((at_s, seen.in_system))
        while self._seen[0][0] < at_s - self._look_back_s:
            self._seen.popleft()
        ongoing = sum(count for _, count in self._seen) / len(self._seen)
        low, high = self._bounds
        wanted = max(low, min(high, math.ceil(ongoing / self._target_ongoing)))
        if wanted == seen.target:
            self._wants = None
            return seen.target
        up = wanted > seen.target
        if self._wants is None or self._wants[0] != up:
            self._wants = up, at_s
        if at_s - self._wants[1] < self._delays_s[up]:
            return seen.target
        self._wants = None
        return wanted
