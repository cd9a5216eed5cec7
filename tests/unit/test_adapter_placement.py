"""Demand of adapters, their desired sets, and the simulation that compares them."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from cluster.placement.adapters import (
    AdapterNeed,
    AdapterPlacement,
    Change,
    Held,
    PlacementSettings,
    ReplicaPlaces,
    Why,
    place_adapters,
)
from cluster.placement.demand import AdapterDemand, Demand, Forgetting, Uses, observe
from cluster.placement.evaluation.comparison import interval, simulate
from cluster.placement.evaluation.policies.prefer_loaded import PreferLoaded
from cluster.placement.evaluation.policies.ray_lru import RayLru
from cluster.placement.evaluation.policies.rendezvous import Rendezvous
from cluster.placement.evaluation.replica import Call, SimulatedReplica
from cluster.placement.evaluation.results import picture, save
from cluster.placement.evaluation.scenario import Scenario, stretches
from cluster.placement.evaluation.simulation import Simulation
from deployments.cli.bench_placement import placement

FORGETTING = Forgetting(remembered_calls=100)
SMALL = Scenario(
    adapters=40, replicas=3, slots=6, calls_at_once=4, warm_up=500, calls=2_000, redraw_every=400
)


def need(name: str, calls_per_s: float = 1.0, *, rank: int = 16, base: str = "m", service_s: float = 0.1):
    return AdapterNeed(f"{name}@1", base, rank, AdapterDemand(calls_per_s, service_s))


def replica(name: str, *held: str, places: int = 4, max_rank: int = 64, drains: bool = False, pinned=()):
    return ReplicaPlaces(
        name,
        "m",
        places,
        max_rank,
        calls_at_once=8,
        pinned=pinned,
        held={f"{each}@1": Held.LOADED for each in held},
        drains=drains,
    )


def place(needs, replicas, previous=None, **settings) -> AdapterPlacement:
    return place_adapters(
        needs, replicas, previous or {}, PlacementSettings(**{"spare_places": 1} | settings)
    )


class TestDemand:
    def test_a_rate_is_calls_over_time_from_the_first_look_on(self) -> None:
        demand = observe(Demand(), {}, 0, FORGETTING)

        demand = observe(demand, {"a@1": Uses(30, 60.0), "b@1": Uses(10, 5.0)}, 10_000, FORGETTING)

        shares = demand.per_adapter()
        assert demand.calls_per_s == pytest.approx(4.0)
        assert shares["a@1"].calls_per_s == pytest.approx(3.0)
        assert shares["a@1"].service_s == pytest.approx(2.0)
        assert shares["a@1"].load == pytest.approx(6.0)
        assert shares["b@1"].service_s == pytest.approx(0.5)

    def test_a_quiet_night_changes_no_share(self) -> None:
        evening = observe(
            observe(Demand(), {}, 0, FORGETTING), {"a@1": Uses(9, 9), "b@1": Uses(1, 1)}, 1000, FORGETTING
        )

        morning = observe(evening, {}, 8 * 3_600_000, FORGETTING)

        assert morning.calls == evening.calls
        assert morning.calls_per_s < 1e-3 * evening.calls_per_s

    def test_a_call_counts_1_in_e_after_the_remembered_calls(self) -> None:
        demand = observe(Demand(), {"old@1": Uses(1, 1.0)}, 0, FORGETTING)

        demand = observe(demand, {"new@1": Uses(100, 1.0)}, 1000, FORGETTING)

        assert demand.calls["old@1"] == pytest.approx(1 / math.e)

    def test_what_nobody_asks_for_is_dropped_from_the_books(self) -> None:
        demand = observe(Demand(), {"old@1": Uses(1, 1.0)}, 0, FORGETTING)

        demand = observe(demand, {"new@1": Uses(700, 1.0)}, 1000, FORGETTING)

        assert set(demand.per_adapter()) == {"new@1"}

    def test_nothing_seen_is_no_demand(self) -> None:
        assert Demand().per_adapter() == {}
        assert Demand().calls_per_s == 0.0

    def test_time_does_not_go_back(self) -> None:
        with pytest.raises(ValueError, match="does not go back"):
            observe(observe(Demand(), {}, 1000, FORGETTING), {}, 999, FORGETTING)

    def test_forgetting_at_once_is_refused(self) -> None:
        with pytest.raises(ValueError, match="forgotten at once"):
            Forgetting(0)


class TestPlacement:
    def test_what_is_held_stays_and_costs_no_load(self) -> None:
        found = place([need("a"), need("b", 2)], [replica("r1", "a"), replica("r2", "b")])

        assert found.desired["r1"][0] == "a@1"
        assert found.desired["r2"][0] == "b@1"
        adopted = [each for each in found.changes if each.why is Why.ADOPTED]
        assert [each.loads for each in adopted] == [False, False]

    def test_the_least_wanted_leaves_for_one_that_a_call_brought(self) -> None:
        wanted = [need("a", 9), need("b", 8), need("c", 1), need("d", 2)]

        found = place(wanted, [replica("r1", "a", "b", "c", "d")], {"r1": ["a@1", "b@1", "c@1"]})

        assert found.desired["r1"] == ("a@1", "b@1", "d@1")
        assert found.changes == (
            Change("r1", "c@1", False, Why.LESS_WANTED),
            Change("r1", "d@1", True, Why.ADOPTED, loads=False),
        )

    def test_a_little_more_wanted_is_not_enough(self) -> None:
        wanted = [need("a", 9), need("b", 8), need("c", 1), need("d", 1.05)]
        previous = {"r1": ["a@1", "b@1", "c@1"]}

        found = place(wanted, [replica("r1", "a", "b", "c", "d")], previous)

        assert found.changes == ()

    def test_a_replica_that_just_came_gets_what_is_missing_a_few_per_tick(self) -> None:
        wanted = [need(f"a{number}", 10 - number) for number in range(6)]

        found = place(wanted, [replica("new", places=7)], loads_per_tick=4)

        assert found.desired["new"] == ("a0@1", "a1@1", "a2@1", "a3@1")
        assert {each.why for each in found.changes} == {Why.DEMAND}
        assert all(each.loads for each in found.changes)

    @pytest.mark.parametrize("drains", [True, False], ids=["drains", "gone"])
    def test_the_adapters_of_a_replica_that_leaves_go_elsewhere(self, drains: bool) -> None:
        leaving = [replica("r1", "a", drains=True)] if drains else []

        found = place([need("a")], [*leaving, replica("r2")], {"r1": ["a@1"], "r2": []})

        assert found.desired["r2"] == ("a@1",)
        assert found.desired.get("r1", ()) == ()
        entered = [each for each in found.changes if each.enters]
        assert entered == [Change("r2", "a@1", True, Why.MOVED, loads=True)]

    def test_a_hot_adapter_has_copies_up_to_the_bound(self) -> None:
        hot = need("hot", 10, service_s=1.0)
        replicas = [replica(f"r{number}") for number in range(6)]

        found = place([hot], replicas, load_per_copy=0.5, max_copies=4, full_share=0.1)

        assert sum("hot@1" in desired for desired in found.desired.values()) == 4
        assert sorted(each.why for each in found.changes) == [Why.COPY, Why.COPY, Why.COPY, Why.DEMAND]

    def test_an_operator_says_how_many_copies(self) -> None:
        wanted = [
            need("hot", 50, service_s=1.0),
            AdapterNeed("two@1", "m", 16, copies=2),
            AdapterNeed("none@1", "m", 16, AdapterDemand(9.0, 1.0), copies=0),
        ]
        previous = {"r1": ["hot@1"], "r2": ["hot@1"], "r3": ["hot@1"]}

        found = place(wanted, [replica(name, "hot", places=2) for name in ("r1", "r2", "r3")], previous)

        assert sorted(found.desired.values()) == [("hot@1",), ("two@1",), ("two@1",)]
        assert [each.why for each in found.changes if each.enters] == [Why.ORDERED, Why.ORDERED]
        assert found.unreachable == ()

    def test_calls_spill_to_an_idle_replica_and_the_adapter_stays_there(self) -> None:
        hot, warm, cool = need("hot", 4), need("warm", 3), need("cool", 1)
        crowded, idle = replica("r1", "hot", "warm", places=3), replica("r2", "cool", "warm", places=3)
        previous = {"r1": ["hot@1", "warm@1"], "r2": ["cool@1"]}

        found = place([hot, warm, cool], [crowded, idle], previous, max_copies=1)

        assert found.desired == {"r1": ("hot@1",), "r2": ("warm@1", "cool@1")}
        assert not any(each.loads for each in found.changes)

    def test_high_ranks_come_together(self) -> None:
        wanted = [need("high", 1, rank=64), need("low", 1, rank=8)]
        lows = replica("r1", "low1", "low2")
        highs = replica("r2", "high1", "high2")
        there = [
            *(need(name, 5, rank=8) for name in ("low1", "low2")),
            *(need(name, 5, rank=64) for name in ("high1", "high2")),
        ]

        found = place([*wanted, *there], [lows, highs], max_copies=1)

        assert "low@1" in found.desired["r1"]
        assert "high@1" in found.desired["r2"]

    def test_no_rank_above_the_replicas(self) -> None:
        found = place([need("high", rank=64), need("low", rank=8)], [replica("r1", max_rank=16)])

        assert found.desired["r1"] == ("low@1",)
        assert found.unreachable == ("high@1",)

    def test_an_adapter_of_another_base_model_is_unreachable(self) -> None:
        assert place([need("a", base="other")], [replica("r1")]).unreachable == ("a@1",)

    def test_pinned_ones_that_fill_a_replica_leave_the_others_unreachable(self) -> None:
        found = place([need("a"), need("p")], [replica("r1", places=1, pinned=("p@1",))])

        assert found.desired["r1"] == ("p@1",)
        assert found.unreachable == ("a@1",)

    def test_a_retired_adapter_leaves(self) -> None:
        found = place([], [replica("r1", "old")], {"r1": ["old@1"]})

        assert found.changes == (Change("r1", "old@1", False, Why.LEAVES),)

    def test_what_nobody_asks_for_stays_while_nobody_needs_its_place(self) -> None:
        found = place([need("a", 0.0)], [replica("r1", "a")], {"r1": ["a@1"]})

        assert found.changes == ()

    def test_no_replica_is_no_error(self) -> None:
        found = place([need("a")], [], {"gone": ["a@1"]})

        assert found.desired == {}
        assert found.unreachable == ("a@1",)

    @pytest.mark.parametrize(
        "wrong", [{"max_copies": 0}, {"keep": -0.1}, {"load_per_copy": 0}, {"full_share": 1.5}], ids=str
    )
    def test_settings_out_of_range_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="placement"):
            PlacementSettings(**wrong)


class TestSimulatedReplica:
    def test_an_adapter_in_use_is_not_evicted(self) -> None:
        each = SimulatedReplica(0, slots=1, calls_at_once=4)
        policy = PreferLoaded([each])
        first, second = Call(1, 0.0, 1.0, counted=True), Call(2, 0.0, 1.0, counted=True)

        assert not each.take(first)
        assert each.begin_load(policy.victim)
        assert each.end_load() == [first]
        assert not each.take(second)
        assert not each.begin_load(policy.victim)
        each.end(first)
        assert each.begin_load(policy.victim)
        assert each.end_load() == [second]
        assert list(each.loaded) == [2]

    def test_one_load_at_a_time_and_calls_before_loads_ahead(self) -> None:
        each = SimulatedReplica(0, slots=4, calls_at_once=4)
        policy = PreferLoaded([each])
        each.ahead.append(7)
        each.take(Call(1, 0.0, 1.0, counted=True))

        assert each.begin_load(policy.victim)
        assert each.loading == 1
        assert not each.begin_load(policy.victim)


class TestPolicies:
    def full_but(self, *free: int) -> list[SimulatedReplica]:
        replicas = [SimulatedReplica(index, slots=4, calls_at_once=2) for index in range(4)]
        for each in replicas:
            each.outstanding = 0 if each.index in free else 2
        return replicas

    def test_prefer_loaded_takes_a_busier_holder_before_an_idle_replica(self) -> None:
        replicas = self.full_but(0, 1)
        replicas[1].loaded[5] = None
        replicas[1].outstanding = 1

        assert PreferLoaded(replicas).choose(Call(5, 0.0, 1.0, counted=True), 0.0) == 1

    def test_rendezvous_goes_home_until_home_is_above_the_bound(self) -> None:
        replicas = self.full_but(0, 1, 2, 3)
        policy = Rendezvous(replicas)
        call = Call(5, 0.0, 1.0, counted=True)

        home = policy.choose(call, 0.0)
        assert policy.choose(call, 9.0) == home
        replicas[home].outstanding = 1
        assert policy.choose(call, 0.0) != home

    def test_ray_tries_the_holders_then_those_with_fewest_adapters(self) -> None:
        replicas = self.full_but(2)
        replicas[0].loaded[5] = None
        replicas[3].loaded[9] = None
        policy = RayLru(replicas, seed=1)
        call = Call(5, 0.0, 1.0, counted=True)

        assert policy.choose(call, 0.0) is None, "its only holder is full"
        assert policy.retry_s(call) == 0.0
        while (chosen := policy.choose(call, 0.1)) is None:
            assert 0.0 < policy.retry_s(call) <= 0.5
        assert chosen == 2


class TestSimulation:
    @pytest.mark.parametrize("policy", ["sprat", "ray_lru", "prefer_loaded", "rendezvous", "oracle"])
    def test_the_seed_decides(self, policy: str) -> None:
        row = simulate(policy, SMALL, seed=3)

        assert 0 < row.loads_per_1000 < 1000
        assert row.cold_share + row.hit_share == pytest.approx(1)
        assert row.cold_ttft_p99_ms >= 1000 * (SMALL.load_s + SMALL.prefill_s)
        assert row == simulate(policy, SMALL, seed=3)
        assert row != simulate(policy, SMALL, seed=4)

    def test_ours_starves_nobody(self) -> None:
        assert simulate("sprat", SMALL, seed=3).starved == 0

    def test_where_all_adapters_fit_nothing_is_loaded_after_the_start(self) -> None:
        few = Scenario(adapters=4, replicas=2, slots=8, calls_at_once=4, warm_up=500, calls=500)

        assert simulate("sprat", few, seed=1).loads_per_1000 <= 2
        assert simulate("prefer_loaded", few, seed=1).loads_per_1000 <= 2

    def test_a_load_that_takes_for_ever_starves(self) -> None:
        slow = Scenario(adapters=40, replicas=2, slots=4, calls_at_once=4, load_s=11, warm_up=0, calls=50)

        assert simulate("prefer_loaded", slow, seed=1).starved > 0

    def test_the_arrivals_are_those_of_the_scenario(self) -> None:
        scenario = Scenario(warm_up=0, calls=20_000)

        found = list(stretches(scenario, seed=5))

        last_s = found[-1].arrivals_s[-1]
        services_s = sum(float(each.services_s.sum()) for each in found) / 20_000
        assert 20_000 / last_s == pytest.approx(scenario.calls_per_s, rel=0.03)
        assert services_s == pytest.approx(scenario.service_s, rel=0.03)
        changed = (found[0].shares != found[1].shares).sum()
        assert 0 < changed <= scenario.redrawn_share * scenario.adapters

    def test_our_policy_sees_no_true_popularity(self) -> None:
        """The truth is told to every policy: with another one told, ours does the same."""

        class Lied(Simulation):
            def run(self):
                told = self._policy.popularity
                self._policy.popularity = lambda shares, rate, now_s: told(shares[::-1], rate, now_s)
                return super().run()

        from cluster.placement.evaluation.comparison import POLICIES

        def loads(kind: type[Simulation], policy: str) -> int:
            return kind(SMALL, 2, POLICIES[policy](SMALL, 2)).run().loads

        assert loads(Lied, "sprat") == loads(Simulation, "sprat")
        assert loads(Lied, "oracle") != loads(Simulation, "oracle")

    def test_an_interval_needs_two_values(self) -> None:
        assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None}
        assert interval([1.0, 3.0])["low"] == pytest.approx(2 - 12.7062, abs=1e-3)


class TestCommand:
    SMALL = ("--adapters=40", "--replicas=3", "--slots=6", "--calls=500", "--warm-up=200", "--repeats=2")

    def test_json_has_a_row_per_policy(self) -> None:
        done = CliRunner().invoke(placement, [*self.SMALL, "--json"])

        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["simulated"] is True
        assert {"sprat", "ray_lru", "prefer_loaded", "rendezvous", "oracle"} <= {
            row["policy"] for row in report["rows"]
        }
        for row in report["rows"]:
            assert row.keys() >= {"loads_per_1000", "cold_ttft_p99_ms", "starved", "slot_imbalance"}
        assert report["over_seeds"]["sprat"]["loads_vs_oracle"]["low"] is not None

    def test_people_get_a_table(self) -> None:
        done = CliRunner().invoke(placement, [*self.SMALL, "--policies=sprat"])

        assert "Simulated" in done.output
        assert "sprat" in done.output

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ("--policies=best", "choose of sprat"),
            ("--utilisation=1.5", "between 0 and 1"),
            ("--slots=0", "at least 1"),
        ],
        ids=["policy", "utilisation", "slots"],
    )
    def test_a_wrong_option_says_what_to_do(self, wrong: str, says: str) -> None:
        done = CliRunner().invoke(placement, [wrong])

        assert done.exit_code == 2
        assert says in done.output

    def test_a_report_is_saved_with_its_picture(self, tmp_path) -> None:
        done = CliRunner().invoke(placement, [*self.SMALL, "--policies=sprat", "--json"])
        report = json.loads(done.stdout)

        table, plot = save(report, tmp_path)

        assert json.loads(table.read_text()) == report
        assert plot.read_text() == picture(report)
        assert "sprat</text>" in plot.read_text()
