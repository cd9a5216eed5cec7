"""What a gateway decides alone while Redis is away, and the snapshot that it decides from."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from cluster.clock import ManualClock
from cluster.scheduler.local_admission import LOCAL_FENCE, LocalAdmission
from cluster.scheduler.snapshot import FleetSnapshot
from cluster.types import (
    BudgetLine,
    Grant,
    PoolLoad,
    RateCharge,
    Refusal,
    RefusalReason,
    ReplicaPhase,
)
from tests.builders import admit_request, ready_replica

DAY = BudgetLine("key:a", "day:20261122", 10**9)


def snapshot(*replicas, gateways=1, **pools) -> FleetSnapshot:
    loads = {"small": PoolLoad(replicas=replicas)} | {
        name: PoolLoad(replicas=tuple(found)) for name, found in pools.items()
    }
    return FleetSnapshot.of(loads, gateways)


def local(allowance=0, clock=None) -> LocalAdmission:
    return LocalAdmission(clock or ManualClock(), allowance, random.Random(1))


def reason(answer) -> RefusalReason | None:
    return answer.reason if isinstance(answer, Refusal) else None


def test_a_call_without_a_budget_is_placed_by_the_last_snapshot():
    answer = local().admit(admit_request(), snapshot(ready_replica("a")), hard=False)

    assert isinstance(answer, Grant)
    assert (answer.replica_id, answer.address, answer.fence) == ("a", "http://a", LOCAL_FENCE)


def test_a_hard_budget_fails_closed_and_a_soft_one_has_its_allowance():
    request = admit_request(budgets=(DAY,), hold_micro_usd=40)
    fleet = snapshot(ready_replica("a", max_concurrency=99))
    assert reason(local(1000).admit(request, fleet, hard=True)) is RefusalReason.UNCHECKED
    assert reason(local(0).admit(request, fleet, hard=False)) is RefusalReason.UNCHECKED

    soft = local(100)
    answers = [soft.admit(replace(request, request_id=f"r{i}"), fleet, hard=False) for i in range(4)]
    assert [reason(each) for each in answers] == [None, None, *[RefusalReason.UNCHECKED] * 2]
    soft.store_is_back()
    assert reason(soft.admit(replace(request, request_id="r9"), fleet, hard=False)) is None


def test_a_later_step_has_its_money_already():
    request = admit_request(budgets=(DAY,), hold_micro_usd=40, step=1)
    assert isinstance(local().admit(request, snapshot(ready_replica("a")), hard=True), Grant)


def test_slots_are_shared_with_the_other_gateways():
    alone = local()
    fleet = snapshot(ready_replica("a", max_concurrency=4), gateways=2)
    answers = [alone.admit(admit_request(f"r{i}"), fleet, hard=False) for i in range(3)]
    assert [reason(each) for each in answers] == [None, None, RefusalReason.CAPACITY]

    alone.ended("r0")
    alone.ended("r0")
    alone.ended("never")

    again = [alone.admit(admit_request(f"s{i}"), fleet, hard=False) for i in range(2)]
    assert [reason(each) for each in again] == [None, RefusalReason.CAPACITY]


def test_a_free_replica_is_found_even_if_the_two_that_were_drawn_are_full():
    alone = local()
    fleet = snapshot(*(ready_replica(f"a{i}", max_concurrency=1) for i in range(20)))

    chosen = [alone.admit(admit_request(f"r{i}"), fleet, hard=False).replica_id for i in range(20)]

    assert sorted(chosen) == sorted(f"a{i}" for i in range(20))


def test_load_is_spread():
    alone = local()
    fleet = snapshot(*(ready_replica(f"a{i}", max_concurrency=1000) for i in range(4)))
    chosen = Counter(alone.admit(admit_request(f"r{i}"), fleet, hard=False).replica_id for i in range(400))
    assert max(chosen.values()) - min(chosen.values()) <= 10


def test_tiers_are_tried_in_order_and_excluded_replicas_not_at_all():
    fleet = snapshot(
        ready_replica("s", max_concurrency=1), large=[ready_replica("l", "large", max_concurrency=1)]
    )
    request = admit_request("r", "small", "large")
    alone = local()
    assert alone.admit(request, fleet, hard=False).replica_id == "s"
    full = replace(request, request_id="r2")
    assert reason(alone.admit(full, fleet, hard=False)) is RefusalReason.CAPACITY
    assert alone.admit(replace(full, spill=True), fleet, hard=False).replica_id == "l"
    failed = replace(request, request_id="r3", exclude_replicas=("s",))
    alone.ended("r2")
    assert alone.admit(failed, fleet, hard=False).replica_id == "l"


def test_nobody_is_there():
    assert reason(local().admit(admit_request(), FleetSnapshot(), hard=False)) is RefusalReason.NO_REPLICA
    draining = snapshot(ready_replica("a", phase=ReplicaPhase.DRAINING))
    assert reason(local().admit(admit_request(), draining, hard=False)) is RefusalReason.NO_REPLICA


def test_rates_are_this_gateways_share_and_a_refusal_takes_nothing():
    clock = ManualClock()
    alone = local(clock=clock)
    fleet = snapshot(ready_replica("a", max_concurrency=999), gateways=2)
    charge = RateCharge("requests:key:a", 1_000_000, 10_000_000)  # 60 per minute, 10 at once

    def ask(count):
        answers = [
            alone.admit(admit_request(f"r{clock.now_ms()}-{i}", rates=(charge,)), fleet, hard=False)
            for i in range(count)
        ]
        return sum(isinstance(each, Grant) for each in answers)

    assert ask(20) == 5
    clock.advance(4_000)
    assert ask(20) == 2
    too_large = admit_request("x", rates=(RateCharge("tokens:key:a", 11, 10),))
    assert reason(alone.admit(too_large, fleet, hard=False)) is RefusalReason.TOO_LARGE


def test_one_large_call_fits_even_where_it_exceeds_the_share():
    alone = local()
    fleet = snapshot(ready_replica("a", max_concurrency=99), gateways=4)
    large = RateCharge("tokens:key:a", 8_000_000, 10_000_000)
    answers = [alone.admit(admit_request(f"r{i}", rates=(large,)), fleet, hard=False) for i in range(2)]
    assert [reason(each) for each in answers] == [None, RefusalReason.RATE]


def test_prefixes_stay_on_their_replica_when_others_come_and_go():
    replicas = [ready_replica(f"a{i}") for i in range(10)]
    before, after = snapshot(*replicas), snapshot(*replicas[:9])
    prefixes = [f"You are agent {i}." for i in range(500)]

    moved = sum(
        before.affine_replica("small", each) != after.affine_replica("small", each) for each in prefixes
    )
    on_the_lost_one = sum(before.affine_replica("small", each) == "a9" for each in prefixes)

    assert moved == on_the_lost_one < 250
    assert snapshot(replicas[0]).affine_replica("small", "x") == "", "no choice, no affinity"
    assert FleetSnapshot().affine_replica("nowhere", "x") == ""
