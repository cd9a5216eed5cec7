"""How many replicas a pool shall have: single decisions, and whole days under a simulated clock."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from cluster.config import AutoscaleConfig, ConfigProblems
from cluster.planner.allocation import allocate
from cluster.planner.autoscale import PlannerState, PoolTarget, Reason, plan
from cluster.planner.observation import FleetFacts, PoolFacts, PoolObservation
from cluster.scheduler.pool_demand import PoolDemand, Ticket
from tests.configs import config_of, simulated
from tests.simulated_pool import RaysRule, SimulatedPool, sine

SETTINGS = AutoscaleConfig(window_s=10, up_delay_s=3, down_delay_s=20, idle_s=30, utilisation=0.8)


def pool_facts(name: str = "pool", **changes: Any) -> PoolFacts:
    """Ten slots; one group for all that do not say otherwise."""
    fields: dict[str, Any] = {
        "name": name,
        "group": ("small", "tiny", "generate"),
        "min_replicas": 0,
        "max_replicas": 10,
        "slots": 10,
        "token_cap": 0,
        "tokens_per_s": 1000.0,
        "usd_per_hour": 1.0,
        "cold_start_s": 5.0,
    }
    return PoolFacts(**(fields | changes))


class Day:
    """Pools that are observed once a second, and do what they are told: a replica is ready `cold_start_s`
    after it was asked for, unless its pool is in `stuck`."""

    def __init__(self, *plans: PoolFacts, settings: AutoscaleConfig = SETTINGS, **targets: int) -> None:
        self.fleet = FleetFacts(plans, settings)
        self.state = PlannerState()
        self.at_s = 1_000.0
        self.stuck: set[str] = set()
        self.sizes = {each.name: targets.get(each.name, each.min_replicas) for each in plans}
        self._asked_for: dict[str, list[float]] = {
            each.name: [-math.inf] * self.sizes[each.name] for each in plans
        }

    def look(self, **seen: dict[str, Any]) -> dict[str, PoolTarget]:
        """One second later; `pool={...}` are fields of its observation."""
        self.at_s += 1
        observed = [
            PoolObservation(
                **(
                    {"pool": each.name, "target": self.sizes[each.name], "ready": self.ready(each)}
                    | {"service_s": 1.0}
                    | seen.get(each.name, {})
                )
            )
            for each in self.fleet.pools
        ]
        targets, self.state = plan(self.fleet, observed, self.state, self.at_s)
        for name, target in targets.items():
            asked_for = self._asked_for[name]
            asked_for += [self.at_s] * (target.replicas - self.sizes[name])
            del asked_for[target.replicas :]
            self.sizes[name] = target.replicas
        return targets

    def ready(self, pool: PoolFacts) -> int:
        if pool.name in self.stuck:
            return sum(at_s == -math.inf for at_s in self._asked_for[pool.name])
        return sum(self.at_s - at_s >= pool.cold_start_s for at_s in self._asked_for[pool.name])

    def looks(self, count: int, **seen: dict[str, Any]) -> list[dict[str, PoolTarget]]:
        return [self.look(**seen) for _ in range(count)]


def busy(calls: int, tokens: int = 100, **changes: Any) -> dict[str, Any]:
    return {"running": calls, "running_tokens": calls * tokens} | changes


class TestOnePool:
    def test_a_fixed_pool_stays_as_it_is(self):
        day = Day(pool_facts(min_replicas=2, max_replicas=2))

        target = day.look(pool=busy(20, waiting=500, waiting_tokens=50_000, late=500))["pool"]

        assert (target.replicas, target.reason) == (2, Reason.FIXED)

    def test_demand_must_last_before_a_pool_grows(self):
        day = Day(pool_facts(), settings=SETTINGS.model_copy(update={"window_s": 1.0}), pool=1)
        day.looks(5, pool=busy(2))

        short = [each["pool"] for each in day.looks(2, pool=busy(40)) + day.looks(5, pool=busy(2))]
        long = [each["pool"] for each in day.looks(5, pool=busy(10))]

        assert {each.replicas for each in short} == {1}
        assert short[0].reason == Reason.SETTLING
        assert long[-1].replicas == 2
        assert Reason.DEMAND in {each.reason for each in long}

    def test_it_grows_by_a_factor_at_once_at_most(self):
        day = Day(pool_facts(), pool=2)

        sizes = [each["pool"].replicas for each in day.looks(40, pool=busy(70))]

        assert sizes[-1] == 9
        assert all(after <= 2 * before for before, after in zip([2, *sizes], sizes, strict=False))

    def test_replicas_that_start_count(self):
        day = Day(pool_facts(cold_start_s=1e6, max_replicas=100), pool=1)

        sizes = [each["pool"].replicas for each in day.looks(60, pool=busy(20))]

        assert sizes[-1] == 3, "20 calls at once are 2 replicas' work, however long they take to come"

    def test_it_shrinks_to_what_it_needed_of_late(self):
        day = Day(pool_facts(), pool=4)
        day.looks(30, pool=busy(30))

        after = [each["pool"] for each in day.looks(60, pool=busy(12))]

        sizes = [each.replicas for each in after]
        assert sizes == sorted(sizes, reverse=True)
        assert set(sizes[:25]) == {4}, "for the delay and the time that a replica takes to come back"
        assert after[15].reason == Reason.COOLING
        assert sizes[-1] == 2

    def test_a_pause_in_the_load_does_not_shrink_it(self):
        day = Day(pool_facts(min_replicas=1), pool=4)
        day.looks(30, pool=busy(30))

        sizes = {
            each["pool"].replicas
            for _ in range(5)
            for each in day.looks(10, pool=busy(0)) + day.looks(8, pool=busy(30))
        }

        assert sizes == {4}

    def test_bounds_hold(self):
        day = Day(pool_facts(min_replicas=2, max_replicas=3), pool=2)

        largest = day.looks(60, pool=busy(90, waiting=90, waiting_tokens=9_000))[-1]["pool"]
        smallest = day.looks(120, pool=busy(0))[-1]["pool"]

        assert (largest.replicas, largest.reason) == (3, Reason.FULL)
        assert smallest.replicas == 2

    def test_late_calls_do_not_wait_for_the_delay(self):
        day = Day(pool_facts(), pool=1)
        day.looks(3, pool=busy(5))

        target = day.look(pool=busy(5, waiting=5, waiting_tokens=500, late=1))["pool"]

        assert (target.replicas, target.reason) == (2, Reason.LATE)
        assert target.attainment == pytest.approx(0.9)

    def test_but_not_more_for_calls_that_are_late_because_replicas_start(self):
        day = Day(pool_facts(cold_start_s=50), pool=1)

        sizes = [
            each["pool"].replicas
            for each in day.looks(20, pool=busy(5, waiting=5, waiting_tokens=500, late=5))
        ]

        assert set(sizes) == {2}

    def test_no_replica_is_started_that_would_come_too_late(self):
        """150 calls wait: gone after 12 s, long before a replica that takes a minute is there."""
        waiting = busy(7, waiting=150, waiting_tokens=15_000, wait_slo_s=5.0)
        slow, fast = Day(pool_facts(cold_start_s=60), pool=2), Day(pool_facts(cold_start_s=1), pool=2)
        for day in (slow, fast):
            day.looks(20, pool=waiting)

        assert slow.sizes["pool"] == 2
        assert fast.sizes["pool"] > 2

    def test_tokens_count_where_they_are_capped(self):
        day = Day(pool_facts(token_cap=1_000), pool=1)

        target = day.looks(30, pool=busy(4, tokens=600))[-1]["pool"]

        assert target.demand.busy == pytest.approx(2.4), "4 calls of 600 tokens, 1,000 per replica"
        assert target.replicas == 3

    def test_a_queue_that_grows_is_what_arrives(self):
        """Eight calls a second come, five are served: the demand is that of eight."""
        day = Day(pool_facts(max_replicas=10, cold_start_s=1e6), pool=1)

        for second in range(15):
            target = day.look(pool=busy(10, service_s=2.0, waiting=3 * second, waiting_tokens=300 * second))[
                "pool"
            ]

        assert target.demand.busy == pytest.approx(1.6, rel=0.05)

    def test_after_a_gap_it_learns_anew_before_it_shrinks(self):
        """Redis was away: what came meanwhile is not known."""
        day = Day(pool_facts(), pool=4)
        day.looks(30, pool=busy(30))
        day.at_s += 600

        sizes = [each["pool"].replicas for each in day.looks(60, pool=busy(5))]

        assert set(sizes[:19]) == {4}
        assert sizes[-1] == 1


class TestSleep:
    def test_it_sleeps_when_nobody_called_for_long(self):
        day = Day(pool_facts(), pool=2)
        day.looks(5, pool=busy(3))

        after = [each["pool"] for each in day.looks(40)]

        assert [each.replicas for each in after[28:31]] == [1, 0, 0]
        assert after[29].reason == Reason.IDLE
        assert after[30].reason == Reason.ASLEEP

    def test_the_first_waiting_call_wakes_it_at_once(self):
        day = Day(pool_facts())
        asleep = day.look()["pool"]

        woken = day.look(pool={"waiting": 1, "waiting_tokens": 100})["pool"]

        assert asleep.reason == Reason.ASLEEP
        assert (woken.replicas, woken.reason) == (1, Reason.WOKEN)

    def test_so_does_a_call_that_could_not_wait(self):
        day = Day(pool_facts())
        day.look(pool={"asked": 3})
        assert day.sizes["pool"] == 0, "that was before"

        woken = day.look(pool={"asked": 4})["pool"]

        assert woken.reason == Reason.WOKEN

    def test_a_redis_that_lost_its_count_wakes_nobody(self):
        day = Day(pool_facts())
        day.look(pool={"asked": 3})

        assert day.look(pool={"asked": 0})["pool"].replicas == 0
        assert day.look(pool={"asked": 1})["pool"].replicas == 1

    def test_it_stays_awake_while_it_starts(self):
        """For longer than it may be idle: the call that woke it has given up, and the next may come."""
        day = Day(pool_facts(cold_start_s=60))
        day.look(pool={"asked": 0})
        day.look(pool={"asked": 1})

        sizes = [each["pool"].replicas for each in day.looks(100, pool={"asked": 1})]

        assert set(sizes[:88]) == {1}, "60 s to start and 30 s to be called"
        assert sizes[-1] == 0

    def test_one_that_cannot_start_goes_back_to_sleep(self):
        day = Day(pool_facts(cold_start_s=10))
        day.stuck = {"pool"}
        day.look(pool={"waiting": 1, "waiting_tokens": 100})

        found = [each["pool"] for each in day.looks(70)]

        assert Reason.STUCK in {each.reason for each in found}
        assert found[-1].replicas == 0

    def test_after_a_gap_it_is_not_idle(self):
        day = Day(pool_facts(), pool=1)
        day.looks(3, pool=busy(3))
        day.at_s += 600

        assert {each["pool"].replicas for each in day.looks(25)} == {1}

    def test_a_pool_with_a_least_size_never_sleeps(self):
        day = Day(pool_facts(min_replicas=1), pool=1)

        assert day.looks(100)[-1]["pool"].replicas == 1


CHEAP = pool_facts("cheap", usd_per_hour=1.0, max_replicas=2)
DEAR = pool_facts("dear", usd_per_hour=5.0, tokens_per_s=2000.0)


class TestGroups:
    def test_the_cheapest_grows_first(self):
        assert allocate([DEAR, CHEAP], {"cheap": 1.5, "dear": 0.2}, {"cheap": 2, "dear": 9}) == {
            "cheap": 2,
            "dear": 0,
        }
        assert allocate([DEAR, CHEAP], {"cheap": 2.5, "dear": 1.0}, {"cheap": 2, "dear": 9}) == {
            "cheap": 2,
            "dear": 2,
        }, "2,500 + 2,000 tokens per second, of which two cheap ones do 2,000"

    def test_everybody_keeps_its_least(self):
        floor = replace(DEAR, min_replicas=1)

        assert allocate([floor, CHEAP], {"cheap": 1.0, "dear": 0.5}, {"cheap": 2, "dear": 9}) == {
            "cheap": 0,
            "dear": 1,
        }

    def test_the_work_of_a_dear_pool_moves_to_a_cheap_one(self):
        day = Day(CHEAP, DEAR, dear=1)

        day.looks(10, dear=busy(8))

        assert day.sizes == {"cheap": 2, "dear": 1}, "1,600 tokens per second are two cheap ones' work"

    def test_other_groups_do_not_help(self):
        day = Day(CHEAP, replace(DEAR, group=("large", "huge", "generate")), dear=1)

        day.looks(10, dear=busy(10))

        assert day.sizes["cheap"] == 0

    def test_where_a_pool_gets_no_node_the_next_one_grows(self):
        """Spot nodes are gone: three cold starts later the work is the next pool's. The first keeps its
        target and takes over again when its replicas come."""
        day = Day(CHEAP, DEAR, cheap=1)
        day.stuck = {"cheap"}
        full = busy(10, waiting=20, waiting_tokens=2_000, wait_slo_s=5.0)

        day.looks(10, cheap=full)
        before = dict(day.sizes)
        day.looks(100, cheap=full)

        assert before == {"cheap": 2, "dear": 0}
        assert day.sizes["cheap"] == 2
        assert day.sizes["dear"] >= 1


class TestObservation:
    def test_of_what_redis_has(self):
        demand = PoolDemand(
            ready=2,
            running=7,
            running_tokens=900,
            waiting=(0, 60, 40),
            tickets=(Ticket(1, 100, 6_000), Ticket(1, 200, 1_000), Ticket(2, 300, 6_000), Ticket(1, 100, 0)),
            service_ms=1_500.0,
            asked=3,
        )

        seen = PoolObservation.of("pool", 3, demand, AutoscaleConfig())

        assert seen == PoolObservation(
            pool="pool",
            target=3,
            ready=2,
            running=7,
            running_tokens=900,
            waiting=100,
            waiting_tokens=17_500,
            late=25,
            wait_slo_s=5.0,
            service_s=1.5,
            asked=3,
        )
        assert seen.starting == 1

    def test_of_a_configuration(self):
        config = config_of(
            simulated(
                pools__specialist__replicas={"min": 0, "max": 3, "cold_start_s": 20},
                pools__specialist__node_share=0.5,
            )
        )

        specialist, reserve = FleetFacts.of(config).pools

        assert specialist == PoolFacts(
            name="specialist",
            group=("small", "tiny", "generate"),
            min_replicas=0,
            max_replicas=3,
            slots=8,
            token_cap=0,
            tokens_per_s=100.0,
            usd_per_hour=0.18,
            cold_start_s=20.0,
        )
        assert reserve.is_fixed

    def test_a_setting_that_cannot_be_is_refused(self):
        with pytest.raises(ConfigProblems, match=r"autoscale\.largest_step"):
            config_of(simulated(autoscale={"largest_step": 1}))


class TestSwingingLoad:
    """A sine from 2 to 22 calls per second; 8 slots, 2 s per call: 0.5 to 5.5 replicas' work."""

    PERIOD_S = 1200.0
    PERIODS = 3
    WAIT_SLO_S = 5.0

    def outcome(self, rule: Any, cold_start_s: float, period_s: float, seed: int = 1) -> Any:
        pool = SimulatedPool(sine(12, 10, period_s), rule, cold_start_s=cold_start_s, seed=seed)
        return pool.run((self.PERIODS + 1) * period_s, measured_from_s=period_s)

    @staticmethod
    def planner(cold_start_s: float) -> Any:
        fleet = FleetFacts(
            (pool_facts(min_replicas=1, max_replicas=20, slots=8, cold_start_s=cold_start_s),),
            AutoscaleConfig(),
        )
        state = PlannerState()

        def rule(seen: PoolObservation, at_s: float) -> int:
            nonlocal state
            targets, state = plan(fleet, [seen], state, at_s)
            return targets["pool"].replicas

        return rule

    @pytest.mark.parametrize("cold_start_s", [15.0, 45.0, 90.0])
    @pytest.mark.parametrize("period_s", [300.0, 600.0, PERIOD_S])
    @pytest.mark.parametrize("seed", [1, 2])
    def test_up_once_and_down_once_in_time(self, cold_start_s, period_s, seed):
        outcome = self.outcome(self.planner(cold_start_s), cold_start_s, period_s, seed)

        assert outcome.turns(period_s) <= 2 * self.PERIODS
        assert outcome.attainment(self.WAIT_SLO_S) >= 0.95

    def test_beside_ray_serves_own_rule_and_fixed_pools(self):
        """The same target utilisation and bounds. Ray's rule counts what waits as demand, and cannot look
        ahead: with a start of 45 s it swings, or keeps far more than it needs."""
        rules = {
            "planner": self.planner(45.0),
            "ray, its delays": RaysRule(8 * 0.8, (1, 20)),
            "ray, our delays": RaysRule(8 * 0.8, (1, 20), up_delay_s=5, down_delay_s=120),
            "fixed at the peak": lambda _seen, _at_s: 7,
            "fixed at the mean": lambda _seen, _at_s: 4,
        }
        outcomes = {name: self.outcome(rule, 45.0, self.PERIOD_S) for name, rule in rules.items()}
        hours = {name: each.replica_s / 3600 for name, each in outcomes.items()}
        met = {name: each.attainment(self.WAIT_SLO_S) for name, each in outcomes.items()}
        turns = {name: each.turns(self.PERIOD_S) / self.PERIODS for name, each in outcomes.items()}
        for name in rules:
            print(
                f"{name}: attainment {met[name]:.4f}, {hours[name]:.2f} replica-hours, "
                f"{turns[name]:.1f} turns per period"
            )

        assert met["planner"] >= 0.99
        assert met["planner"] >= max(met["ray, its delays"], met["ray, our delays"])
        assert hours["planner"] < min(hours["ray, its delays"], hours["fixed at the peak"])
        assert turns["planner"] <= 2 < turns["ray, our delays"]
        assert met["fixed at the mean"] < 0.9

    def test_a_burst_is_served_and_let_go(self):
        def rate(at_s: float) -> float:
            return 30.0 if 600 <= at_s < 900 else 1.0

        outcome = SimulatedPool(rate, self.planner(20.0), cold_start_s=20.0).run(1800)

        assert outcome.turns() == 1, "up, and down"
        assert outcome.targets[-1][1] == 1
        assert outcome.lost == 0
