"""Which adapters each replica shall hold: demand and what is where → the desired set of every replica. Pure.

A call for an adapter that is not there loads it on the spot. So a place is worth the calls per second that
need no load because of it, and moving an adapter ahead of its calls saves no load, it only saves the first
callers their wait. Hence the order of the rule:

1. Pinned adapters have their places.
2. What is held and wanted stays where it is, and what a call has brought is adopted there: no load.
3. Only then adapters are loaded ahead: into free places, or in place of one that is wanted much less.

Two controllers may compute at once; the one that may write is decided elsewhere.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np

from cluster.placement.demand import NO_DEMAND, AdapterDemand
from cluster.placement.pool_places import NOTHING_TO_DISPLACE, PoolPlaces

BEFORE_ALL_OTHERS = 1e12
"""Calls per second: what a copy is worth that an operator wants."""

AFTER_ALL_OTHERS = 1e-9
"""What makes a copy worth less than the first one of any other adapter."""


TICK_S = 5.0
"""Between two ticks. Calls load what they need by themselves: this only looks ahead."""


class Held(IntEnum):
    """Where a replica has an adapter, the best first. What only lies on its disk is not held."""

    LOADED = 0
    HOST = 1
    LOADING = 2


class Why(StrEnum):
    """Why a desired set changed."""

    PINNED = "pinned"
    ADOPTED = "adopted"
    """A call brought it, and it is wanted more than what else could be there."""
    DEMAND = "demand"
    """No replica had it."""
    ORDERED = "ordered"
    """An operator wants so many copies."""
    COPY = "copy"
    """One replica is not enough for its calls."""
    MOVED = "moved"
    """Its replica drains or is gone."""
    FEWER_COPIES = "fewer_copies"
    LESS_WANTED = "less_wanted"
    """Another adapter has its place."""
    LEAVES = "leaves"
    """The adapter is retired, or does not fit this replica any more, or the replica drains."""


@dataclass(frozen=True, slots=True)
class AdapterNeed:
    """One adapter of the registry and what it is asked for. `copies`: so many replicas shall hold it, neither
    more nor fewer, whatever the demand (an operator's word); None: demand decides."""

    adapter_id: str
    base_model: str
    rank: int
    demand: AdapterDemand = NO_DEMAND
    copies: int | None = None

    @property
    def is_wanted(self) -> bool:
        """Some replica should be able to load it."""
        return self.demand.calls_per_s > 0 or bool(self.copies)


@dataclass(frozen=True, slots=True)
class ReplicaPlaces:
    """One replica. `places`: adapters in its main memory at most, those in slots included (the pool's
    `adapters_on_host`); the first of a desired set are the ones for the slots. `calls_at_once`: request
    slots. `pinned` count among the places."""

    replica_id: str
    base_model: str
    places: int
    max_rank: int
    calls_at_once: int
    pinned: tuple[str, ...] = ()
    held: Mapping[str, Held] = field(default_factory=dict)
    drains: bool = False


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """`spare_places` of each replica stay free for calls of adapters without a place. An adapter needs a copy
    for each `load_per_copy` (share of a replica's request slots) of its load, and has `max_copies` at most.
    `full_share`: how often a replica has no free request slot, so that another copy is of use. What is held
    is kept until another one is wanted more by the factor 1 + `keep`; the same for copies. To be loaded ahead
    of its calls in place of another one, an adapter must be wanted more by the factor 1 + `ahead`.
    `loads_per_tick`: adapters that one replica loads ahead per tick: loads hold up its engine."""

    spare_places: int = 2
    load_per_copy: float = 0.1
    max_copies: int = 8
    full_share: float = 0.1
    keep: float = 0.1
    ahead: float = 20.0
    loads_per_tick: int = 4

    def __post_init__(self) -> None:
        if self.spare_places < 0 or self.loads_per_tick < 0 or self.max_copies < 1:
            raise ValueError(f"a setting of the placement is too small: {self}")
        if self.load_per_copy <= 0 or self.keep < 0 or self.ahead < 0:
            raise ValueError(f"a factor of the placement is too small: {self}")
        if not 0 <= self.full_share < 1:
            raise ValueError(f"full_share of the placement must be a share below 1: {self}")


@dataclass(frozen=True, slots=True)
class Change:
    """One adapter enters or leaves a desired set. `loads`: the replica has to load it."""

    replica_id: str
    adapter_id: str
    enters: bool
    why: Why
    loads: bool = False


@dataclass(frozen=True, slots=True)
class AdapterPlacement:
    """`desired`: per replica, the most wanted first. `unreachable`: adapters with demand that no replica can
    load, by base model, rank or because pinned ones have every place."""

    desired: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...]
    unreachable: tuple[str, ...]


def place_adapters(
    adapters: Iterable[AdapterNeed],
    replicas: Iterable[ReplicaPlaces],
    previous: Mapping[str, Sequence[str]],
    settings: PlacementSettings | None = None,
) -> AdapterPlacement:
    """One tick. `previous`: the desired sets of the last one; replicas that are gone may still be in it. The
    order of the inputs does not matter."""
    known = {each.adapter_id: each for each in sorted(adapters, key=lambda each: each.adapter_id)}
    ordered = sorted(replicas, key=lambda each: each.replica_id)
    tick = _Tick(known, ordered, previous, settings or PlacementSettings())
    tick.pin()
    tick.keep_and_adopt()
    tick.load_ahead()
    return tick.placement()


@dataclass(slots=True)
class _Books:
    """One replica during the tick. `taken`: adapter → what its place is worth. Pinned ones are not in it."""

    replica: ReplicaPlaces
    room: int
    loads_left: int
    taken: dict[str, float] = field(default_factory=dict)
    why: dict[str, Why] = field(default_factory=dict)


class _Tick:
    def __init__(
        self,
        adapters: Mapping[str, AdapterNeed],
        replicas: Sequence[ReplicaPlaces],
        previous: Mapping[str, Sequence[str]],
        settings: PlacementSettings,
    ) -> None:
        self._adapters = adapters
        self._settings = settings
        self._previous = previous
        self._replicas = replicas
        self._books = [
            _Books(
                each,
                max(0, each.places - len(each.pinned) - settings.spare_places),
                settings.loads_per_tick,
            )
            for each in replicas
            if not each.drains
        ]
        self._pools: dict[str, list[int]] = defaultdict(list)
        self._position: list[int] = []
        for index, books in enumerate(self._books):
            self._position.append(len(self._pools[books.replica.base_model]))
            self._pools[books.replica.base_model].append(index)
        self._places = {
            name: PoolPlaces(
                [self._books[index].replica.max_rank for index in indices],
                [self._books[index].replica.calls_at_once for index in indices],
            )
            for name, indices in self._pools.items()
        }
        self._previously = {
            books.replica.replica_id: frozenset(previous.get(books.replica.replica_id, ()))
            for books in self._books
        }
        self._desired_at: dict[str, list[int]] = defaultdict(list)
        for index, books in enumerate(self._books):
            for adapter_id in self._previously[books.replica.replica_id]:
                self._desired_at[adapter_id].append(index)
        self._needed_copies = self._copies_for_load()
        self._has_room_for_all = self._with_room_for_all()
        self._placed: dict[str, set[int]] = defaultdict(set)
        self._missing: list[tuple[float, str]] = []
        """Heap: what a further copy would be worth, negative, and its adapter."""

    # 1. Pinned.

    def pin(self) -> None:
        for index, books in enumerate(self._books):
            for adapter_id in books.replica.pinned:
                self._placed[adapter_id].add(index)

    # 2. What costs nothing.

    def keep_and_adopt(self) -> None:
        claims = self._claims()
        self._even_out(claims)
        per_replica: dict[int, list[tuple[float, str]]] = defaultdict(list)
        for adapter_id, where in claims.items():
            first = len(self._placed.get(adapter_id, ())) + 1
            for copy, (stays, index) in enumerate(
                where[: self._most_copies(adapter_id) + 1 - first], start=first
            ):
                worth = self._worth(adapter_id, copy)
                per_replica[index].append((-worth * (1 + self._settings.keep if stays else 1), adapter_id))
        for index, wanted in per_replica.items():
            wanted.sort()
            for weight, adapter_id in wanted[: self._books[index].room]:
                self._take(index, adapter_id, -weight, Why.ADOPTED)
        for adapter_id, need in self._adapters.items():
            if need.is_wanted and need.base_model in self._pools:
                self._miss(adapter_id)
        for index in range(len(self._books)):
            self._write(index)

    def _even_out(self, claims: Mapping[str, list[tuple[bool, int]]]) -> None:
        """A call that found its replica full has brought the adapter to another one. Where that one has less
        to do, the adapter stays there instead: the load is evened out and nothing is loaded."""
        busy: dict[int, float] = defaultdict(float)
        for adapter_id, where in claims.items():
            for stays, index in where[: self._needed_copies.get(adapter_id, 1)]:
                if stays:
                    busy[index] += self._busy_with(adapter_id, index)
        for adapter_id in sorted(claims, key=lambda each: (-self._share_of_load(each), each)):
            where = claims[adapter_id]
            needed = self._needed_copies.get(adapter_id, 1)
            if len(where) <= needed or not where[needed - 1][0]:
                continue
            crowded = max(range(needed), key=lambda at: busy[where[at][1]])
            idle = min(range(needed, len(where)), key=lambda at: busy[where[at][1]])
            before, after = where[crowded][1], where[idle][1]
            adds = self._busy_with(adapter_id, after)
            if busy[before] > (busy[after] + adds) * (1 + self._settings.keep):
                where[crowded], where[idle] = where[idle], where[crowded]
                busy[before] -= self._busy_with(adapter_id, before)
                busy[after] += adds

    def _busy_with(self, adapter_id: str, index: int) -> float:
        return self._share_of_load(adapter_id) / max(1, self._books[index].replica.calls_at_once)

    def _claims(self) -> dict[str, list[tuple[bool, int]]]:
        """Adapter → the replicas that hold it, the best claim first, and whether it was desired there. What
        was desired and has been pushed out by calls has no claim: it comes back with its next call, or ahead
        of it where it is wanted enough."""
        claims: dict[str, list[tuple[bool, int, int]]] = defaultdict(list)
        for index, books in enumerate(self._books):
            replica = books.replica
            before = self._previously[replica.replica_id]
            for adapter_id, held in replica.held.items():
                need = self._adapters.get(adapter_id)
                if need is None or adapter_id in replica.pinned or not _fits(need, replica):
                    continue
                stays = adapter_id in before
                if stays or need.is_wanted:
                    claims[adapter_id].append((not stays, held, index))
        return {
            adapter_id: [(not moves, index) for moves, _, index in sorted(where)]
            for adapter_id, where in claims.items()
        }

    # 3. What costs a load.

    def load_ahead(self) -> None:
        hopeless: dict[str, int] = {}
        """Base model → lowest rank for which a more wanted adapter found no place."""
        while self._missing:
            weight, adapter_id = heapq.heappop(self._missing)
            need = self._adapters[adapter_id]
            if need.rank >= hopeless.get(need.base_model, need.rank + 1):
                continue
            index = self._place_for(need, -weight)
            if index is None:
                if not self._placed[adapter_id]:
                    hopeless[need.base_model] = need.rank
                continue
            books = self._books[index]
            why = self._why_missing(need)
            self._take(index, adapter_id, -weight, why)
            if adapter_id not in books.replica.held:
                books.loads_left -= 1
            self._write(index)
            self._miss(adapter_id)

    def _place_for(self, need: AdapterNeed, worth: float) -> int | None:
        """A free place, or one that is freed now."""
        indices = self._pools[need.base_model]
        places = self._places[need.base_model]
        taken = [self._position[index] for index in self._placed[need.adapter_id]]
        under_way = [self._position[index] for index in self._desired_at.get(need.adapter_id, ())]
        position = places.with_room(need.rank, taken, under_way)
        if position is not None:
            return indices[position]
        least = places.least_wanted(need.rank, taken)
        if least is None or worth <= (1 + self._settings.ahead) * least[1]:
            return None
        index = indices[least[0]]
        self._displace(index)
        return index

    def _displace(self, index: int) -> None:
        books = self._books[index]
        _, adapter_id = min((worth, adapter_id) for adapter_id, worth in books.taken.items())
        del books.taken[adapter_id], books.why[adapter_id]
        self._placed[adapter_id].discard(index)
        self._miss(adapter_id)

    def _write(self, index: int) -> None:
        books = self._books[index]
        here = [*books.replica.pinned, *books.taken]
        ranks = [self._adapters[each].rank for each in here if each in self._adapters]
        self._places[books.replica.base_model].write(
            self._position[index],
            room=books.room - len(books.taken),
            loads_left=books.loads_left,
            top_rank=max(ranks, default=0),
            load=sum(self._share_of_load(each) for each in here),
            lowest=min(books.taken.values(), default=NOTHING_TO_DISPLACE),
        )

    def _why_missing(self, need: AdapterNeed) -> Why:
        if need.copies is not None:
            return Why.ORDERED
        if self._placed[need.adapter_id]:
            return Why.COPY
        living = self._previously.keys()
        lost = any(
            need.adapter_id in desired
            for replica_id, desired in self._previous.items()
            if replica_id not in living
        )
        return Why.MOVED if lost else Why.DEMAND

    # The result.

    def placement(self) -> AdapterPlacement:
        desired: dict[str, tuple[str, ...]] = {each.replica_id: () for each in self._replicas if each.drains}
        changes: list[Change] = []
        for books in self._books:
            replica = books.replica
            order = sorted(books.taken, key=lambda each: (-books.taken[each], each))
            desired[replica.replica_id] = (*replica.pinned, *order)
            before = self._previously[replica.replica_id]
            for adapter_id in desired[replica.replica_id]:
                if adapter_id not in before:
                    why = books.why.get(adapter_id, Why.PINNED)
                    changes.append(
                        Change(replica.replica_id, adapter_id, True, why, adapter_id not in replica.held)
                    )
            changes += [
                Change(replica.replica_id, adapter_id, False, self._why_leaves(adapter_id, books))
                for adapter_id in before.difference(desired[replica.replica_id])
            ]
        for replica in self._replicas:
            if replica.drains:
                changes += [
                    Change(replica.replica_id, adapter_id, False, Why.LEAVES)
                    for adapter_id in self._previous.get(replica.replica_id, ())
                ]
        return AdapterPlacement(
            dict(sorted(desired.items())),
            tuple(sorted(changes, key=lambda each: (each.replica_id, each.enters, each.adapter_id))),
            self._unreachable(),
        )

    def _why_leaves(self, adapter_id: str, books: _Books) -> Why:
        need = self._adapters.get(adapter_id)
        if need is None or not _fits(need, books.replica):
            return Why.LEAVES
        return Why.FEWER_COPIES if self._placed[adapter_id] else Why.LESS_WANTED

    def _unreachable(self) -> tuple[str, ...]:
        """By the best replica of each base model: the highest rank that a place which may change can take."""
        highest: dict[str, int] = {}
        for books in self._books:
            replica = books.replica
            if replica.places > len(replica.pinned):
                highest[replica.base_model] = max(highest.get(replica.base_model, 0), replica.max_rank)
        return tuple(
            adapter_id
            for adapter_id, need in self._adapters.items()
            if need.is_wanted
            and not self._placed.get(adapter_id)
            and need.rank > highest.get(need.base_model, -1)
        )

    # Shared parts.

    def _take(self, index: int, adapter_id: str, worth: float, why: Why) -> None:
        books = self._books[index]
        books.taken[adapter_id] = worth
        books.why[adapter_id] = why
        self._placed[adapter_id].add(index)

    def _miss(self, adapter_id: str) -> None:
        """The next copy is missing, if there may be one."""
        copy = len(self._placed.get(adapter_id, ())) + 1
        if copy <= self._most_copies(adapter_id):
            heapq.heappush(self._missing, (-self._worth(adapter_id, copy), adapter_id))

    def _worth(self, adapter_id: str, copy: int) -> float:
        """Calls per second that need no load because this copy is there. Each copy that the load needs has
        its share of them; one more has those that come when the others have no free request slot."""
        need = self._adapters[adapter_id]
        if need.copies is not None:
            return BEFORE_ALL_OTHERS
        needed = self._needed_copies.get(adapter_id, 1)
        spilled = self._settings.full_share ** max(0, copy - needed)
        worth = need.demand.calls_per_s / min(copy, needed) * spilled
        return worth * AFTER_ALL_OTHERS if copy > 1 and adapter_id in self._has_room_for_all else worth

    def _with_room_for_all(self) -> frozenset[str]:
        """Adapters of base models whose replicas have a place for every adapter with demand: there no copy
        keeps another adapter out."""
        room: dict[str, int] = defaultdict(int)
        pinned: set[str] = set()
        for books in self._books:
            room[books.replica.base_model] += books.room
            pinned.update(books.replica.pinned)
        wanted: dict[str, list[AdapterNeed]] = defaultdict(list)
        for need in self._adapters.values():
            if need.is_wanted:
                wanted[need.base_model].append(need)
        return frozenset(
            need.adapter_id
            for base_model, needs in wanted.items()
            if sum(need.copies or 1 for need in needs if need.adapter_id not in pinned) <= room[base_model]
            for need in needs
        )

    def _share_of_load(self, adapter_id: str) -> float:
        need = self._adapters.get(adapter_id)
        return need.demand.load / self._needed_copies.get(adapter_id, 1) if need is not None else 0.0

    def _most_copies(self, adapter_id: str) -> int:
        need = self._adapters[adapter_id]
        most = self._settings.max_copies if need.copies is None else need.copies
        return min(most, len(self._pools[need.base_model]))

    def _copies_for_load(self) -> dict[str, int]:
        """Of adapters that need more than one. They come at once and go late."""
        before: dict[str, int] = defaultdict(int)
        for adapters in self._previous.values():
            for adapter_id in adapters:
                before[adapter_id] += 1
        slots = {
            name: float(np.median([self._books[index].replica.calls_at_once for index in indices]))
            for name, indices in self._pools.items()
        }
        copies: dict[str, int] = {}
        for adapter_id, need in self._adapters.items():
            per_copy = self._settings.load_per_copy * max(1.0, slots.get(need.base_model, 1.0))
            now = math.ceil(need.demand.load / per_copy)
            late = math.ceil(need.demand.load * (1 + self._settings.keep) / per_copy)
            needed = max(now, min(before[adapter_id], late)) if need.copies is None else need.copies
            if needed > 1 and need.base_model in slots:
                copies[adapter_id] = min(needed, self._most_copies(adapter_id))
        return copies


def _fits(need: AdapterNeed, replica: ReplicaPlaces) -> bool:
    return need.base_model == replica.base_model and need.rank <= replica.max_rank
