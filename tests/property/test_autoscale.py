"""What holds for every pool on every day: bounds, steps, patience, and rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings

from cluster.config import AutoscaleConfig
from cluster.planner.allocation import allocate
from cluster.planner.autoscale import PlannerState, PoolTarget, Reason, plan
from cluster.planner.observation import FleetFacts, PoolFacts, PoolObservation

SETTINGS = AutoscaleConfig(window_s=5, up_delay_s=2, down_delay_s=10, idle_s=8, largest_step=2.0)


@st.composite
def pools(draw: st.DrawFn, name: str = "pool", group: str = "group") -> PoolFacts:
    least = draw(st.integers(0, 3))
    return PoolFacts(
        name=name,
        group=(group,),
        min_replicas=least,
        max_replicas=draw(st.integers(max(1, least), 12)),
        slots=draw(st.integers(1, 16)),
        token_cap=draw(st.sampled_from([0, 500])),
        tokens_per_s=draw(st.sampled_from([50.0, 1000.0])),
        usd_per_hour=draw(st.sampled_from([0.5, 1.0, 4.0])),
        cold_start_s=draw(st.sampled_from([1.0, 6.0])),
    )


LOOKS = st.builds(
    PoolObservation,
    pool=st.just("pool"),
    target=st.just(0),
    ready=st.integers(0, 6),
    running=st.integers(0, 40),
    running_tokens=st.integers(0, 4_000),
    waiting=st.sampled_from([0, 0, 1, 30]),
    waiting_tokens=st.sampled_from([1, 100, 5_000]),
    late=st.sampled_from([0, 0, 1]),
    wait_slo_s=st.sampled_from([1.0, 5.0]),
    service_s=st.sampled_from([None, 0.5, 3.0]),
)
STRETCHES = st.lists(st.tuples(LOOKS, st.integers(1, 15)), min_size=1, max_size=12)
"""A look, and for how many seconds it stays so."""


def days_of(pool: PoolFacts, stretches: list[tuple[PoolObservation, int]], then: Callable[..., None]) -> None:
    """Tells of every second: its observation, the decision, and when."""
    fleet, state, at_s, size = FleetFacts((pool,), SETTINGS), PlannerState(), 0.0, pool.min_replicas
    for look, seconds in stretches:
        for _ in range(seconds):
            at_s += 1
            late, ready = min(look.late, look.waiting), min(look.ready, size)
            seen = replace(look, target=size, ready=ready, late=late)
            targets, state = plan(fleet, [seen], state, at_s)
            then(seen, targets["pool"], at_s)
            size = targets["pool"].replicas


@given(pools(), STRETCHES)
@settings(max_examples=40)
def test_a_target_stays_within_the_bounds_and_grows_by_a_factor_at_most(pool, stretches):
    def check(seen: PoolObservation, target: PoolTarget, _: float) -> None:
        assert pool.min_replicas <= target.replicas <= pool.max_replicas
        assert target.replicas <= max(2, seen.target * SETTINGS.largest_step)
        assert target.least <= target.enough

    days_of(pool, stretches, check)


@given(pools(), STRETCHES)
@settings(max_examples=40)
def test_it_never_goes_down_soon_after_it_went_up(pool, stretches):
    """Unless it goes to sleep, which needs `idle_s` without a call."""
    grown: list[float] = []
    busy: list[float] = [0.0]

    def check(seen: PoolObservation, target: PoolTarget, at_s: float) -> None:
        if seen.in_system:
            busy.append(at_s)
        if target.replicas > seen.target:
            grown.append(at_s)
        elif target.reason == Reason.IDLE:
            assert target.replicas == pool.min_replicas == 0
            assert at_s - busy[-1] >= SETTINGS.idle_s
        elif target.replicas < seen.target:
            assert target.reason == Reason.SURPLUS
            assert target.replicas >= 1
            assert not grown or at_s - grown[-1] > SETTINGS.down_delay_s

    days_of(pool, stretches, check)


@given(pools(), STRETCHES, LOOKS)
@settings(max_examples=25)
def test_it_comes_to_rest_under_a_steady_load(pool, stretches, steady):
    """All replicas come, calls are in time: after a while nothing changes any more."""
    steady = replace(steady, ready=1_000, late=0)
    changes: list[float] = []
    ends: list[float] = []

    def check(seen: PoolObservation, target: PoolTarget, at_s: float) -> None:
        ends.append(at_s)
        if target.replicas != seen.target:
            changes.append(at_s)

    days_of(pool, [*stretches, (steady, 120)], check)

    assert not changes or changes[-1] < ends[-1] - 40


@given(pools(), STRETCHES)
@settings(max_examples=10)
def test_the_same_day_gives_the_same_decisions(pool, stretches):
    first: list[PoolTarget] = []
    second: list[PoolTarget] = []

    days_of(pool, stretches, lambda _seen, target, _at_s: first.append(target))
    days_of(pool, stretches, lambda _seen, target, _at_s: second.append(target))

    assert first == second


@given(
    st.tuples(pools("a"), pools("b"), pools("c")),
    st.tuples(*[st.floats(0, 20)] * 3),
    st.tuples(*[st.integers(0, 12)] * 3),
)
def test_a_group_does_its_work_if_it_can_and_the_dear_ones_only_what_is_left(group, work, most):
    names = [each.name for each in group]
    limits = {each.name: max(each.min_replicas, limit) for each, limit in zip(group, most, strict=True)}
    needed = sum(each.tokens_per_s * amount for each, amount in zip(group, work, strict=True))

    shares = allocate(group, dict(zip(names, work, strict=True)), limits)

    capacity = sum(each.tokens_per_s * shares[each.name] for each in group)
    assert all(each.min_replicas <= shares[each.name] <= limits[each.name] for each in group)
    assert capacity >= needed - 1e-6 or all(shares[name] == limits[name] for name in names)
    for dear in group:
        for cheap in group:
            if cheap.usd_per_token < dear.usd_per_token and shares[dear.name] > dear.min_replicas:
                assert shares[cheap.name] == limits[cheap.name]
