"""One policy, one scenario, one seed: a discrete-event run of the fleet."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Any

from cluster.placement.evaluation.policies.policy import PlacementPolicy
from cluster.placement.evaluation.replica import Call, SimulatedReplica
from cluster.placement.evaluation.scenario import Scenario, stretches

GIVEN_UP_S = 120.0
"""After the last arrival, what has not started by then is never served."""


class _Event(IntEnum):
    """Of those at the same moment the smaller one happens first."""

    CALL_ENDED = 0
    LOAD_ENDED = 1
    ARRIVAL = 2
    RETRY = 3
    TICK = 4


@dataclass(frozen=True, slots=True)
class Run:
    """`calls` are those that were counted. `loads`, `served` per replica, and `copies` (places taken per
    distinct adapter, at the end) are of the counted part."""

    calls: tuple[Call, ...]
    loads: int
    served: tuple[int, ...]
    copies: float


class Simulation:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        policy_of: Callable[[Sequence[SimulatedReplica]], PlacementPolicy],
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._replicas = [
            SimulatedReplica(index, scenario.slots, scenario.calls_at_once)
            for index in range(scenario.replicas)
        ]
        self._policy = policy_of(self._replicas)
        self._events: list[tuple[float, int, int, Any]] = []
        self._numbers = count()
        self._line: deque[Call] = deque()

    def run(self) -> Run:
        scenario, policy = self._scenario, self._policy
        calls: list[Call] = []
        arrived = 0
        loads_before, served_before = 0, [0] * scenario.replicas
        if policy.tick_s:
            self._at(policy.tick_s, _Event.TICK, None)
        now_s = 0.0
        for stretch in stretches(scenario, self._seed):
            policy.popularity(stretch.shares, scenario.calls_per_s, now_s)
            self._load_where_wanted(now_s)
            for adapter, arrived_s, service_s in zip(
                stretch.adapters.tolist(),
                stretch.arrivals_s.tolist(),
                stretch.services_s.tolist(),
                strict=True,
            ):
                now_s = arrived_s
                self._run_until(now_s)
                if arrived == scenario.warm_up:
                    loads_before = sum(each.loads for each in self._replicas)
                    served_before = [each.served for each in self._replicas]
                call = Call(adapter, arrived_s, service_s, arrived >= scenario.warm_up)
                arrived += 1
                if call.counted:
                    calls.append(call)
                self._arrive(call, now_s)
        loads = sum(each.loads for each in self._replicas) - loads_before
        served = tuple(
            each.served - before for each, before in zip(self._replicas, served_before, strict=True)
        )
        places = [adapter for each in self._replicas for adapter in each.loaded]
        self._run_until(now_s + GIVEN_UP_S)
        return Run(tuple(calls), loads, served, len(places) / max(1, len(set(places))))

    # Events.

    def _at(self, time_s: float, event: _Event, what: Any) -> None:
        heapq.heappush(self._events, (time_s, event, next(self._numbers), what))

    def _run_until(self, end_s: float) -> None:
        events = self._events
        while events and events[0][0] <= end_s:
            now_s, event, _, what = heapq.heappop(events)
            if event == _Event.CALL_ENDED:
                self._end(what, now_s)
            elif event == _Event.LOAD_ENDED:
                for call in what.end_load():
                    self._start(call, now_s)
                self._load(what, now_s)
            elif event == _Event.RETRY:
                self._arrive(what, now_s)
            else:
                self._policy.tick(now_s)
                self._load_where_wanted(now_s)
                self._at(now_s + self._policy.tick_s, _Event.TICK, None)

    def _arrive(self, call: Call, now_s: float) -> None:
        if self._line:
            self._line.append(call)
            return
        replica = self._policy.choose(call, now_s)
        if replica is not None:
            self._give(call, replica, now_s)
            return
        retry_s = self._policy.retry_s(call)
        if retry_s is None:
            self._line.append(call)
        else:
            self._at(now_s + retry_s, _Event.RETRY, call)

    def _give(self, call: Call, index: int, now_s: float) -> None:
        replica = self._replicas[index]
        if replica.take(call):
            self._start(call, now_s)
        else:
            self._load(replica, now_s)

    def _start(self, call: Call, now_s: float) -> None:
        call.started_s = now_s
        self._at(now_s + call.service_s, _Event.CALL_ENDED, call)

    def _end(self, call: Call, now_s: float) -> None:
        replica = self._replicas[call.replica]
        replica.end(call)
        self._policy.ended(call)
        while self._line:
            index = self._policy.choose(self._line[0], now_s)
            if index is None:
                break
            self._give(self._line.popleft(), index, now_s)
        self._load(replica, now_s)

    def _load(self, replica: SimulatedReplica, now_s: float) -> None:
        if replica.begin_load(self._policy.victim):
            self._at(now_s + self._scenario.load_s, _Event.LOAD_ENDED, replica)

    def _load_where_wanted(self, now_s: float) -> None:
        for replica in self._replicas:
            self._load(replica, now_s)
