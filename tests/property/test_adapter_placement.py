"""What holds of every desired set, whatever the demand, the replicas and what lies where."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement.adapters import (
    AdapterNeed,
    AdapterPlacement,
    Held,
    PlacementSettings,
    ReplicaPlaces,
    place_adapters,
)
from cluster.placement.demand import AdapterDemand

NAMES = [f"a{number}@1" for number in range(12)]
SETTLED_AFTER = 60
"""Ticks; each loads at least one adapter, or nothing is left to do."""


@st.composite
def needs(draw, *, ranks=(8, 16, 64), bases=("m", "n"), copies=(0, 1, 3)):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    return [
        AdapterNeed(
            name,
            draw(st.sampled_from(bases)),
            draw(st.sampled_from(ranks)),
            AdapterDemand(
                draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 1.05, 3.0, 20.0])),
                draw(st.sampled_from([0.1, 1.0, 4.0])),
            ),
            draw(st.sampled_from([None, None, None, *copies])),
        )
        for name in names
    ]


@st.composite
def fleets(draw, *, max_ranks=(16, 64), bases=("m", "n")):
    fleet = []
    for number in range(draw(st.integers(0, 4))):
        places = draw(st.integers(1, 6))
        held = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=places))
        fleet.append(
            ReplicaPlaces(
                f"r{number}",
                draw(st.sampled_from(bases)),
                places,
                draw(st.sampled_from(max_ranks)),
                draw(st.integers(1, 8)),
                pinned=tuple(draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=min(2, places)))),
                held={name: draw(st.sampled_from(Held)) for name in held},
                drains=draw(st.booleans()) and number > 1,
            )
        )
    return fleet


@st.composite
def desired_sets(draw):
    return {
        f"r{number}": draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6)) for number in range(5)
    }


choices = st.builds(
    PlacementSettings,
    spare_places=st.integers(0, 2),
    load_per_copy=st.sampled_from([0.1, 0.5]),
    max_copies=st.integers(1, 4),
    full_share=st.sampled_from([0.0, 0.1, 0.3]),
    keep=st.sampled_from([0.0, 0.1]),
    ahead=st.sampled_from([0.5, 20.0]),
    loads_per_tick=st.integers(1, 4),
)


@given(needs(), fleets(), desired_sets(), choices)
def test_no_set_is_larger_than_its_replica_or_of_too_high_a_rank(wanted, fleet, previous, chosen) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    by_name = {each.adapter_id: each for each in wanted}
    assert found.desired.keys() == {each.replica_id for each in fleet}
    for replica in fleet:
        desired = found.desired[replica.replica_id]
        placed = [name for name in desired if name not in replica.pinned]
        assert len(desired) == len(set(desired))
        assert len(placed) <= max(0, replica.places - len(replica.pinned) - chosen.spare_places)
        for name in placed:
            assert by_name[name].rank <= replica.max_rank
            assert by_name[name].base_model == replica.base_model


@given(needs(), fleets(), desired_sets(), choices)
def test_pinned_adapters_are_always_there_and_first(wanted, fleet, previous, chosen) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    for replica in fleet:
        desired = found.desired[replica.replica_id]
        assert desired == () if replica.drains else desired[: len(replica.pinned)] == replica.pinned


@given(needs(), fleets(), desired_sets(), choices)
def test_copies_and_loads_of_a_tick_are_bounded(wanted, fleet, previous, chosen) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    for replica in fleet:
        loads = [
            name
            for name in found.desired[replica.replica_id]
            if name not in replica.held and name not in replica.pinned
        ]
        assert len(loads) <= chosen.loads_per_tick
    for name in NAMES:
        pinned = sum(name in each.pinned and not each.drains for each in fleet)
        copies = sum(name in desired for desired in found.desired.values())
        ordered = next((each.copies for each in wanted if each.adapter_id == name), None)
        most = chosen.max_copies if ordered is None else ordered
        assert copies <= max(most, pinned)


@given(needs(), fleets(), desired_sets(), choices, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(wanted, fleet, previous, chosen, rng: random.Random) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    shuffled = {
        name: rng.sample(previous[name], len(previous[name])) for name in rng.sample(sorted(previous), 5)
    }
    again = place_adapters(rng.sample(wanted, len(wanted)), rng.sample(fleet, len(fleet)), shuffled, chosen)

    assert again == found


@given(needs(), fleets(), desired_sets(), choices)
def test_the_changes_lead_from_the_last_sets_to_these(wanted, fleet, previous, chosen) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    for replica in fleet:
        changes = [each for each in found.changes if each.replica_id == replica.replica_id]
        entered = {each.adapter_id for each in changes if each.enters}
        left = {each.adapter_id for each in changes if not each.enters}
        before = set(previous.get(replica.replica_id, ()))
        assert (before - left) | entered == set(found.desired[replica.replica_id])
        assert left <= before
        assert entered.isdisjoint(before)


def applied(replica: ReplicaPlaces, desired: tuple[str, ...]) -> ReplicaPlaces:
    """As a replica does it: what is desired comes, what is not leaves only where room is needed."""
    kept = [name for name in replica.held if name not in desired]
    room = max(0, replica.places - len(desired))
    held = dict.fromkeys((*desired, *kept[:room]), Held.LOADED)
    return ReplicaPlaces(
        replica.replica_id,
        replica.base_model,
        replica.places,
        replica.max_rank,
        replica.calls_at_once,
        replica.pinned,
        held,
        replica.drains,
    )


def settled(wanted, fleet, previous, chosen) -> tuple[list[ReplicaPlaces], AdapterPlacement]:
    """Ticks with the same demand until nothing changes any more."""
    for _ in range(SETTLED_AFTER):
        found = place_adapters(wanted, fleet, previous, chosen)
        fleet = [applied(each, found.desired[each.replica_id]) for each in fleet]
        previous = found.desired
        if not found.changes:
            return fleet, found
    raise AssertionError(f"the sets still change after {SETTLED_AFTER} ticks: {found.changes}")


@settings(deadline=None, max_examples=60)
@given(needs(), fleets(), desired_sets(), choices)
def test_the_same_demand_comes_to_rest(wanted, fleet, previous, chosen) -> None:
    fleet, found = settled(wanted, fleet, previous, chosen)

    assert place_adapters(wanted, fleet, found.desired, chosen).changes == ()


@settings(deadline=None, max_examples=60)
@given(
    needs(ranks=(8, 16), bases=("m",), copies=()),
    fleets(max_ranks=(64,), bases=("m",)),
    desired_sets(),
    choices,
)
def test_every_wanted_adapter_has_a_place_while_there_are_enough(wanted, fleet, previous, chosen) -> None:
    _, found = settled(wanted, fleet, previous, chosen)

    asked_for = {each.adapter_id for each in wanted if each.demand.calls_per_s > 0}
    living = [each for each in fleet if not each.drains]
    room = sum(max(0, each.places - len(each.pinned) - chosen.spare_places) for each in living)
    pinned = {name for each in living for name in each.pinned}
    placed = {name for desired in found.desired.values() for name in desired}
    if len(asked_for - pinned) <= room:
        assert asked_for <= placed


@given(needs(), fleets(), desired_sets(), choices)
def test_what_is_called_unreachable_is_exactly_that(wanted, fleet, previous, chosen) -> None:
    found = place_adapters(wanted, fleet, previous, chosen)

    for each in wanted:
        can = any(
            (
                replica.base_model == each.base_model
                and replica.max_rank >= each.rank
                and replica.places > len(replica.pinned)
            )
            or each.adapter_id in replica.pinned
            for replica in fleet
            if not replica.drains
        )
        assert (each.adapter_id in found.unreachable) == (each.is_wanted and not can)
