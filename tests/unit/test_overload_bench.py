"""The overload bench: its trace, its arithmetic on results made by hand, and short runs without Ray."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import pairwise

import pytest

from cluster.types import PriorityClass
from deployments.bench.arrivals import (
    DEADLINE_S,
    TENANT_SHARES,
    WORK_SHARES,
    Arrival,
    Fleet,
    offered_load,
    poisson_arrivals,
)
from deployments.bench.fifo_queue import FifoQueue
from deployments.bench.overload import Ending, Outcome, Replay, Result, replay
from deployments.bench.overload_main import SYSTEMS, run_overload
from deployments.bench.overload_metrics import (
    LEAST_CONTENDED_STARTS,
    attainment,
    contended_starts,
    idle_ms_per_start,
    jain,
    report,
    started_late,
    utilisation,
)

FLEET = Fleet()
INTERACTIVE = PriorityClass.INTERACTIVE


def arrival(
    at_s=0.0, *, tenant="a", tokens=50, service_s=0.1, deadline_s=1.0, priority=INTERACTIVE
) -> Arrival:
    return Arrival(at_s, f"{tenant}@{at_s}", tenant, priority, tokens, service_s, deadline_s)


def served(started_s, **fields) -> Result:
    each = arrival(**fields)
    return Result(each, Ending.SERVED, each.at_s, started_s, started_s, started_s + each.service_s)


def unserved(ending, left_s, **fields) -> Result:
    each = arrival(**fields)
    return Result(each, ending, each.at_s, left_s)


class TestTrace:
    def test_the_same_seed_gives_the_same_trace(self):
        assert poisson_arrivals(7, 3, FLEET) == poisson_arrivals(7, 3, FLEET)
        assert poisson_arrivals(7, 3, FLEET) != poisson_arrivals(8, 3, FLEET)

    @pytest.mark.parametrize("overload", [0.5, 2.0])
    def test_it_asks_for_the_load_that_was_asked_for(self, overload):
        trace = poisson_arrivals(1, 20, FLEET, overload=overload)

        assert offered_load(trace, 20, FLEET) == pytest.approx(overload, rel=0.001)

    def test_arrivals_are_in_order_and_inside_the_run(self):
        times_s = [each.at_s for each in poisson_arrivals(1, 5, FLEET)]

        assert times_s == sorted(times_s)
        assert times_s[0] > 0
        assert times_s[-1] < 5

    def test_gaps_spread_like_those_of_a_poisson_process(self):
        times_s = [each.at_s for each in poisson_arrivals(1, 60, FLEET)]
        gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
        mean_s = sum(gaps_s) / len(gaps_s)
        variance = sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s)

        assert variance / mean_s**2 == pytest.approx(1, abs=0.1)

    def test_classes_and_tenants_have_their_shares(self):
        trace = poisson_arrivals(1, 60, FLEET)
        classes = Counter(each.priority for each in trace)
        tenants = Counter(each.tenant for each in trace)

        for priority, share in WORK_SHARES.items():
            assert classes[priority] / len(trace) == pytest.approx(share, abs=0.02)
            for tenant, of_class in TENANT_SHARES.items():
                assert tenants[f"{priority}-{tenant}"] / classes[priority] == pytest.approx(
                    of_class, abs=0.04
                )

    def test_each_request_has_its_own_name_and_the_deadline_of_its_class(self):
        trace = poisson_arrivals(1, 5, FLEET)

        assert len({each.request_id for each in trace}) == len(trace)
        assert all(each.deadline_s == DEADLINE_S[each.priority] for each in trace)


class TestAttainment:
    def test_everything_but_a_start_in_time_is_a_miss(self):
        results = [
            served(1.0),
            served(1.1),
            unserved(Ending.REFUSED, 0.1),
            unserved(Ending.ABANDONED, 9.0),
        ]

        assert attainment(results) == 1 / 4
        assert started_late(results) == 1

    def test_waiting_counts_from_the_moment_of_the_trace(self):
        assert served(6.0, at_s=5.0).in_time
        assert not served(6.1, at_s=5.0).in_time

    def test_of_nothing(self):
        assert attainment([]) is None


class TestJain:
    @pytest.mark.parametrize(
        ("shares", "wanted"),
        [([5, 5, 5, 5], 1.0), ([9, 0, 0, 0], 1 / 4), ([3, 1, 1, 1], 0.75), ([0, 0], None), ([], None)],
    )
    def test_index(self, shares, wanted):
        assert jain(shares) == (wanted if wanted is None else pytest.approx(wanted))

    def test_only_starts_with_all_tenants_waiting_count(self):
        results = [
            served(0.0, tenant="a", tokens=1),  # b is not there yet
            served(3.0, at_s=1.0, tenant="a", tokens=10),
            served(4.0, at_s=2.0, tenant="b", tokens=20),  # a still has one waiting
            served(5.0, at_s=2.0, tenant="a", tokens=100),  # b has nothing left
        ]

        contended = contended_starts(results)

        assert contended.count == 2
        assert contended.tokens == {"a": 10, "b": 20}

    def test_refused_requests_wait_until_they_are_refused(self):
        results = [
            unserved(Ending.REFUSED, 2.0, tenant="b"),
            served(1.0, tenant="a", tokens=10),
            served(3.0, tenant="a", tokens=10),
        ]

        assert contended_starts(results).tokens == {"a": 10, "b": 0}

    def test_too_few_choices_give_no_index(self):
        def fair(rounds):
            return [served(float(at), tenant=tenant) for at in range(rounds) for tenant in ("a", "b")]

        enough = Replay(tuple(fair(LEAST_CONTENDED_STARTS)), cores=0.1)
        few = Replay(tuple(fair(LEAST_CONTENDED_STARTS // 4)), cores=0.1)

        assert report(enough, 10, FLEET)["jain"] == 1
        assert report(few, 10, FLEET)["jain"] is None


class TestUtilisation:
    def test_work_counts_inside_the_run_and_as_long_as_the_trace_says(self):
        fleet = Fleet(replicas=1, slots_per_replica=2)
        whole, across_the_end, after = (
            served(0.0, service_s=4.0),
            served(8.0, service_s=4.0),
            served(11.0, service_s=4.0),
        )

        assert utilisation([whole, across_the_end, after], 10, fleet) == pytest.approx(6 / 20)
        assert idle_ms_per_start([whole, across_the_end, after], 10, fleet) == pytest.approx(7000)


class TestReport:
    def test_has_the_fields_of_the_command_and_every_ending(self):
        results = (
            served(0.5),
            served(2.0, priority=PriorityClass.BATCH),
            unserved(Ending.REFUSED, 0.0),
            unserved(Ending.FAILED, 0.0),
        )

        row = report(Replay(results, cores=0.1), 10, FLEET)

        assert row["interactive_attainment"] == 1 / 3
        assert row["jain"] is None
        assert row["started_late"] == 1
        assert [row[ending] for ending in Ending] == [2, 1, 0, 1]
        assert row["classes"]["batch"]["attainment"] == 0
        assert row["classes"]["normal"]["attainment"] is None


class TestReplay:
    async def test_fifo_serves_in_order_in_as_many_slots_as_there_are(self):
        trace = [arrival(0.01 * number, service_s=0.1) for number in range(6)]

        results = (await replay(trace, FifoQueue(slots=2))).results

        starts_s = [each.started_s for each in results]
        assert [each.arrival for each in results] == trace
        assert starts_s == sorted(starts_s)
        assert all(later - earlier >= 0.099 for earlier, later in zip(starts_s, starts_s[2:], strict=False))
        assert all(each.sent_s >= each.arrival.at_s for each in results)

    async def test_refusals_and_errors_are_results(self):
        class Moody:
            async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
                if arrival.tenant == "a":
                    return Outcome(refused=True, reason="queue_full")
                raise ConnectionError("gone")

        refused, failed = (await replay([arrival(), arrival(tenant="b")], Moody())).results

        assert (refused.ending, refused.reason) == (Ending.REFUSED, "queue_full")
        assert (failed.ending, failed.reason) == (Ending.FAILED, "ConnectionError('gone')")

    async def test_what_waits_long_past_its_deadline_is_abandoned(self):
        class Stuck:
            async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
                await asyncio.Event().wait()
                raise AssertionError

        began_s = time.monotonic()
        (result,) = (await replay([arrival(deadline_s=0.1)], Stuck())).results

        assert result.ending is Ending.ABANDONED
        assert result.left_s > 0.1
        assert time.monotonic() - began_s < 5

    async def test_fifo_may_give_up_what_it_cannot_start_in_time(self):
        trace = [arrival(service_s=0.2), arrival(0.01, service_s=0.1, deadline_s=0.05)]

        first, second = (await replay(trace, FifoQueue(slots=1, heeds_deadlines=True))).results

        assert first.in_time
        assert (second.ending, second.reason) == (Ending.REFUSED, "deadline")

    async def test_a_system_is_told_until_when_it_may_start(self):
        class Curious:
            async def run(self, arrival: Arrival, start_by_s: float, /) -> Outcome:
                left_s.append(start_by_s - time.monotonic())
                return Outcome(refused=True)

        left_s = []
        await replay([arrival(0.05, deadline_s=2.0)], Curious())

        assert 1.5 < left_s[0] <= 2.0

    def test_the_comparison_runs_each_system_in_its_own_process(self):
        row = run_overload("fifo", seed=1, seconds=0.5)

        assert row["offered_load"] == pytest.approx(2, rel=0.01)
        assert row["served"] == row["arrivals"] > 0
        assert 0.5 < row["utilisation"] <= 1

    def test_the_systems_are_known_by_the_names_of_the_report(self):
        assert {"sprat", "fifo", "ray_capacity_queue"} <= SYSTEMS.keys()
