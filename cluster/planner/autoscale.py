"""How many replicas each pool shall have. No I/O, no clock: observations and the state before go in, targets
with their reasons and the next state come out. The same code runs in Ray Serve's controller and under a
simulated clock.

A pool has a range of sizes that are right: `least` is what the demand needs, `enough` what it would need
with some room to spare. It grows to the smallest `least` of the last `up_delay_s`, and shrinks to the
largest `enough` of the last `down_delay_s` (and a cold start); between the two it stays. So it goes up once
and down once with a load that swings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, TypeVar

from cluster.config import AutoscaleConfig
from cluster.planner.allocation import allocate, replicas_for
from cluster.planner.demand import Demand, Sample, busy_replicas, demand_of, window_s
from cluster.planner.observation import FleetFacts, PoolFacts, PoolObservation

PATIENCE_COLD_STARTS = 3.0
"""A pool whose replicas have not come after so many cold starts is stuck."""

LONGEST_GAP_PERIODS = 10.0
"""More than this between two looks is a gap."""


class Reason(StrEnum):
    """Why a target is what it is. `settling` and `cooling`: it would grow or shrink, and it is too early.
    `full`: it is as large as it may be. `stuck`: replicas that were asked for do not come. `price`: it does
    the work of a dearer pool, or of a stuck one."""

    FIXED = "fixed"
    STEADY = "steady"
    DEMAND = "demand"
    FORECAST = "forecast"
    BACKLOG = "backlog"
    LATE = "late"
    PRICE = "price"
    WOKEN = "woken"
    ASLEEP = "asleep"
    SURPLUS = "surplus"
    IDLE = "idle"
    SETTLING = "settling"
    COOLING = "cooling"
    FULL = "full"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """`replicas` and why, with the numbers it follows from (`Demand`, and the range of sizes that are
    right)."""

    pool: str
    replicas: int
    reason: Reason
    demand: Demand
    least: int
    enough: int
    attainment: float


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes that were right at a time."""

    at_s: float
    least: int
    enough: int


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What the planner remembers of a pool. `known_since_s`: nothing was seen before. `busy_s`: when it had a
    call last, or grew. `short_since_s`: since when replicas are missing (None: none is)."""

    known_since_s: float
    busy_s: float
    asked: int
    samples: tuple[Sample, ...] = ()
    ranges: tuple[Range, ...] = ()
    grown_s: float = float("-inf")
    short_since_s: float | None = None


class _Dated(Protocol):
    @property
    def at_s(self) -> float: ...


_History = TypeVar("_History", bound=_Dated)


@dataclass(frozen=True, slots=True)
class PlannerState:
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """One pool in one round."""

    pool: PoolFacts
    seen: PoolObservation
    memory: PoolMemory
    demand: Demand
    wanted: bool
    """Somebody waits for it, or asked for it since the last round."""
    stuck: bool
    """Replicas that were asked for do not come: no node of its class is to be had."""


def plan(
    fleet: FleetFacts, observed: Iterable[PoolObservation], state: PlannerState, at_s: float
) -> tuple[dict[str, PoolTarget], PlannerState]:
    """`at_s` never goes back. A pool that is not observed gets no target and keeps its memory."""
    pools = {each.name: each for each in fleet.pools}
    looks = [_look(pools[seen.pool], seen, state, fleet.settings, at_s) for seen in observed]
    groups: dict[tuple[str, ...], list[_Look]] = {}
    for look in looks:
        groups.setdefault(look.pool.group, []).append(look)
    targets: dict[str, PoolTarget] = {}
    memories = dict(state.pools)
    for group in groups.values():
        for look, sizes in _ranges(group, fleet.settings, at_s):
            target, memories[look.pool.name] = _decide(look, sizes, fleet.settings, at_s)
            targets[look.pool.name] = target
    return targets, PlannerState(memories)


def _look(
    pool: PoolFacts, seen: PoolObservation, state: PlannerState, settings: AutoscaleConfig, at_s: float
) -> _Look:
    memory = _memory_of(seen, state, settings, at_s)
    window = window_s(seen, settings.window_s)
    busy = busy_replicas(pool, seen, _since(memory.samples, at_s - window), at_s)
    now = Sample(at_s, seen.running, seen.in_system, busy)
    ahead_s = pool.cold_start_s + settings.up_delay_s
    samples = (*_since(memory.samples, at_s - max(2 * window, 2 * ahead_s)), now)
    demand = demand_of(pool, seen, samples, ahead_s=ahead_s, most=settings.largest_step)
    wanted = seen.waiting > 0 or seen.asked > memory.asked
    short_since_s = at_s if memory.short_since_s is None else memory.short_since_s
    memory = replace(
        memory,
        samples=samples,
        busy_s=at_s if seen.in_system or wanted else memory.busy_s,
        asked=seen.asked,
        short_since_s=short_since_s if seen.starting else None,
    )
    stuck = seen.starting > 0 and at_s - short_since_s > PATIENCE_COLD_STARTS * pool.cold_start_s
    if seen.target and not seen.ready and not stuck:
        memory = replace(memory, busy_s=at_s)  # nobody could call it yet
    return _Look(pool, seen, memory, demand, wanted, stuck)


def _memory_of(
    seen: PoolObservation, state: PlannerState, settings: AutoscaleConfig, at_s: float
) -> PoolMemory:
    """What was not looked at says nothing: after a gap, all is learned anew before a pool shrinks."""
    memory = state.pools.get(seen.pool)
    if memory is None:
        return PoolMemory(known_since_s=at_s, busy_s=at_s, asked=seen.asked)
    if at_s - memory.samples[-1].at_s > LONGEST_GAP_PERIODS * settings.period_s:
        return replace(memory, known_since_s=at_s, busy_s=at_s, samples=(), ranges=())
    return memory


def _ranges(group: Sequence[_Look], settings: AutoscaleConfig, at_s: float) -> list[tuple[_Look, Range]]:
    """The sizes that are right for each pool of a group, which share their work."""
    pools = [look.pool for look in group]
    # The work of a stuck pool goes to the next one of its group.
    most = {
        look.pool.name: max(look.pool.min_replicas, look.seen.ready) if look.stuck else look.pool.max_replicas
        for look in group
    }
    goal = settings.utilisation

    def sizes(load_of: Mapping[str, float]) -> dict[str, int]:
        return allocate(pools, load_of, most)

    least = sizes({each.pool.name: each.demand.least / goal for each in group})
    room = goal * (1 - settings.hysteresis)
    enough = sizes({each.pool.name: each.demand.enough / room for each in group})
    ranges = []
    for look in group:
        name, pool = look.pool.name, look.pool
        low = least[name]
        if look.wanted or (look.seen.in_system and look.seen.target):
            low = max(low, 1)
        if look.seen.attainment < settings.attainment and not look.seen.starting:
            low = max(low, look.seen.target + 1)
        low = max(pool.min_replicas, min(pool.max_replicas, low))
        # But it goes on asking, to take over again when its replicas come.
        high = look.seen.target if look.stuck else enough[name]
        ranges.append((look, Range(at_s, low, max(low, high))))
    return ranges


def _decide(
    look: _Look, sizes: Range, settings: AutoscaleConfig, at_s: float
) -> tuple[PoolTarget, PoolMemory]:
    kept_s = max(settings.up_delay_s, _keep_s(look.pool, settings))
    memory = replace(look.memory, ranges=(*_since(look.memory.ranges, at_s - kept_s), sizes))
    replicas, reason = _size(look, memory, settings, at_s)
    if replicas > look.seen.target:
        # A new replica gets its time to be called before it may count as idle.
        memory = replace(memory, grown_s=at_s, busy_s=at_s)
    target = PoolTarget(
        look.pool.name,
        replicas,
        reason,
        look.demand,
        sizes.least,
        sizes.enough,
        look.seen.attainment,
    )
    return target, memory


def _size(look: _Look, memory: PoolMemory, settings: AutoscaleConfig, at_s: float) -> tuple[int, Reason]:
    pool, target = look.pool, look.seen.target
    if pool.is_fixed:
        return pool.min_replicas, Reason.FIXED
    now = memory.ranges[-1]
    if now.least > target:
        return _grown(look, memory, settings, at_s)
    if pool.min_replicas == 0 and now.least == 0 and at_s - memory.busy_s >= settings.idle_s:
        return 0, Reason.IDLE if target else Reason.ASLEEP
    if target == 0:
        return 0, Reason.ASLEEP
    if look.stuck:
        return target, Reason.STUCK
    if now.enough < target:
        enough = max(1, pool.min_replicas, *(each.enough for each in memory.ranges))
        known = at_s - memory.known_since_s >= _keep_s(pool, settings)
        return (enough, Reason.SURPLUS) if known and enough < target else (target, Reason.COOLING)
    if target >= pool.max_replicas and now.least >= target:
        return target, Reason.FULL
    return target, Reason.STEADY


def _keep_s(pool: PoolFacts, settings: AutoscaleConfig) -> float:
    """How long a pool keeps what it needed: longer where it takes longer to get it back."""
    return settings.down_delay_s + pool.cold_start_s


def _grown(look: _Look, memory: PoolMemory, settings: AutoscaleConfig, at_s: float) -> tuple[int, Reason]:
    target, now = look.seen.target, memory.ranges[-1]
    if target == 0 and look.wanted:
        return min(now.least, max(1, int(settings.largest_step))), Reason.WOKEN
    late = look.seen.attainment < settings.attainment and not look.seen.starting
    least = now.least
    if not late:
        recent = _since(memory.ranges, at_s - settings.up_delay_s)
        least = min([each.least for each in recent])
        known = at_s - memory.known_since_s >= settings.up_delay_s
        if not known or least <= target or at_s - memory.grown_s < settings.up_delay_s:
            return target, Reason.SETTLING
    at_once = max(target + 1, int(target * settings.largest_step))
    return min(least, at_once), Reason.LATE if late else _why(look, target, settings)


def _why(look: _Look, target: int, settings: AutoscaleConfig) -> Reason:
    """The first of its own reasons that alone would have been enough; else it grows for its group."""
    demand, goal = look.demand, settings.utilisation
    if replicas_for(demand.busy / goal) > target:
        return Reason.DEMAND
    if replicas_for(demand.forecast / goal) > target:
        return Reason.FORECAST
    if replicas_for(demand.least / goal) > target:
        return Reason.BACKLOG
    return Reason.PRICE


def _since(history: Sequence[_History], from_s: float) -> tuple[_History, ...]:
    return tuple([each for each in history if each.at_s >= from_s])
