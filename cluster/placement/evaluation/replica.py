"""A replica of the simulated fleet: request slots, places for adapters, one load at a time.

A call takes a request slot when it arrives at the replica, and keeps it while it waits for its adapter: so do
the lease of ours and the ongoing request of Ray Serve. A load needs a place; an adapter that a call uses or
waits for cannot be evicted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Call:
    """One call. Times in seconds of the simulation; -1 where it has not happened yet."""

    adapter: int
    arrived_s: float
    service_s: float
    counted: bool
    replica: int = -1
    started_s: float = -1.0
    cold: bool = False
    attempts: int = 0


@dataclass(slots=True)
class SimulatedReplica:
    """`loaded`: adapters in places, the longest unused first. `loading`: the one on its way. `victim` names
    the adapter of `idle()` that leaves for another one, or none."""

    index: int
    slots: int
    calls_at_once: int
    outstanding: int = 0
    served: int = 0
    loads: int = 0
    busy_s: float = 0.0
    loaded: OrderedDict[int, None] = field(default_factory=OrderedDict)
    loading: int | None = None
    users: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, list[Call]] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=deque)
    """Adapters to load, for calls that wait."""
    ahead: deque[int] = field(default_factory=deque)
    """Adapters to load without a call; they give way to those of calls."""

    @property
    def is_full(self) -> bool:
        return self.outstanding >= self.calls_at_once

    def holds(self, adapter: int) -> bool:
        """There, or on its way."""
        return adapter in self.loaded or adapter in self.waiting or adapter == self.loading

    def idle(self) -> list[int]:
        """What may be evicted, the longest unused first."""
        return [adapter for adapter in self.loaded if adapter not in self.users]

    def take(self, call: Call) -> bool:
        """True: the call may start now. False: it waits for its adapter."""
        adapter = call.adapter
        call.replica = self.index
        self.outstanding += 1
        self.users[adapter] = self.users.get(adapter, 0) + 1
        if adapter in self.loaded:
            self.loaded.move_to_end(adapter)
            return True
        call.cold = True
        if adapter not in self.waiting:
            self.waiting[adapter] = []
            if adapter != self.loading:
                self.queue.append(adapter)
        self.waiting[adapter].append(call)
        return False

    def end(self, call: Call) -> None:
        self.outstanding -= 1
        self.served += 1
        self.busy_s += call.service_s
        users = self.users[call.adapter] - 1
        if users:
            self.users[call.adapter] = users
        else:
            del self.users[call.adapter]

    def begin_load(self, victim: Callable[[SimulatedReplica, int, bool], int | None]) -> bool:
        """The next load, if one is wanted, none is under way and a place is free or can be freed."""
        if self.loading is not None:
            return False
        for_call = bool(self.queue)
        while not for_call and self.ahead and self.holds(self.ahead[0]):
            self.ahead.popleft()
        line = self.queue if for_call else self.ahead
        if not line:
            return False
        if len(self.loaded) >= self.slots:
            leaves = victim(self, line[0], for_call)
            if leaves is None:
                if not for_call:
                    line.clear()
                return False
            del self.loaded[leaves]
        self.loading = line.popleft()
        self.loads += 1
        return True

    def end_load(self) -> list[Call]:
        """The calls that may start now."""
        adapter = self.loading
        if adapter is None:
            raise RuntimeError("no load is under way")
        self.loading = None
        self.loaded[adapter] = None
        return self.waiting.pop(adapter, [])
