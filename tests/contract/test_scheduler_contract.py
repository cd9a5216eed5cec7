"""What every scheduler does: the same scenarios in memory and on a real Valkey."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.types import Grant, PoolLoad, Price, Refusal, RefusalReason, ReplicaPhase, Spend, Usage
from tests.builders import LARGE_PRICE, SMALL_PRICE, admit_request, candidate, ready_replica

DAY_MS = 86_400_000


async def grant_of(scheduler, request) -> Grant:
    answer = await scheduler.admit(request)
    assert isinstance(answer, Grant), answer
    return answer


async def refusal_of(scheduler, request) -> RefusalReason:
    answer = await scheduler.admit(request)
    assert isinstance(answer, Refusal), answer
    return answer.reason


async def load_of(scheduler, pool="small") -> dict[str, tuple[int, int]]:
    books = await scheduler.pool_load(pool)
    return {state.replica_id: (state.load_requests, state.load_tokens) for state in books.replicas}


@pytest.fixture
def sut(scheduler):
    return scheduler


class TestReplicaChoice:
    async def test_grant_has_everything_the_gateway_needs(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", address="http://10.0.0.1:9000"))

        grant = await grant_of(sut.scheduler, admit_request("r"))

        assert (grant.request_id, grant.step, grant.replica_id) == ("r", 0, "a")
        assert grant.address == "http://10.0.0.1:9000"
        assert grant.candidate == candidate("small")
        assert grant.fence == 1
        assert grant.lease_expiry_ms > 1_600_000_000_000

    async def test_fewest_outstanding_tokens_wins_then_fewest_requests_then_the_first_id(self, sut):
        for replica in "cba":
            await sut.scheduler.heartbeat(ready_replica(replica, max_concurrency=9))

        chosen = [
            (await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=tokens))).replica_id
            for i, tokens in enumerate([100, 50, 30, 20, 1, 0, 0])
        ]

        # After four: a 100, b 50, c 30 + 20; so b leads c by requests. Then c 50, b 51, and c again with 0.
        assert chosen == ["a", "b", "c", "c", "b", "c", "c"]

    async def test_cap_is_never_exceeded(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r0"))
        await grant_of(sut.scheduler, admit_request("r1"))

        assert await sut.scheduler.admit(admit_request("r2")) == Refusal(RefusalReason.CAPACITY, 1_000)

    async def test_nobody_there(self, sut):
        assert await sut.scheduler.admit(admit_request("r")) == Refusal(RefusalReason.NO_REPLICA, 3_000)
        assert await refusal_of(sut.scheduler, admit_request("r", candidates=())) == RefusalReason.NO_REPLICA

    @pytest.mark.parametrize(
        "phase", [phase for phase in ReplicaPhase if phase is not ReplicaPhase.READY], ids=str
    )
    async def test_only_ready_replicas_are_chosen(self, sut, phase):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("a", phase=phase))

        assert await refusal_of(sut.scheduler, admit_request("r")) == RefusalReason.NO_REPLICA
        assert [phase] == [state.phase for state in (await sut.scheduler.pool_load("small")).replicas]

    async def test_load_survives_a_drain_that_is_called_off(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2, phase=ReplicaPhase.DRAINING))
        assert await refusal_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))

        await grant_of(sut.scheduler, admit_request("r1"))

        assert await refusal_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

    async def test_free_replica_is_found_behind_many_full_ones_with_fewer_tokens(self, sut):
        for i in range(12):
            await sut.scheduler.heartbeat(ready_replica(f"full{i:02}", max_concurrency=1))
        for i in range(12):
            await grant_of(sut.scheduler, admit_request(f"small{i}", tokens=1))
        await sut.scheduler.heartbeat(ready_replica("zfree", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("big", tokens=1_000_000))

        grant = await grant_of(sut.scheduler, admit_request("r"))

        assert grant.replica_id == "zfree"

    async def test_a_raised_cap_frees_a_slot_and_a_lowered_one_takes_it(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r1"))
        await sut.scheduler.settle("r0", ["small"], Usage(1, 1))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))

        assert await refusal_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

    async def test_excluded_replicas_are_left_out_and_do_not_hide_others(self, sut):
        for i in range(12):
            await sut.scheduler.heartbeat(ready_replica(f"a{i:02}"))
        excluded = tuple(f"a{i:02}" for i in range(11))

        grant = await grant_of(sut.scheduler, admit_request("r", exclude_replicas=excluded))

        assert grant.replica_id == "a11"

    async def test_a_pool_of_excluded_replicas_is_passed_over(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))

        grant = await grant_of(sut.scheduler, admit_request("r", "small", "large", exclude_replicas=("a",)))
        alone = await refusal_of(sut.scheduler, admit_request("r2", "small", exclude_replicas=("a",)))

        assert grant.replica_id == "b"
        assert alone == RefusalReason.NO_REPLICA

    async def test_hundred_at_once_on_five_slots(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=3))

        answers = await asyncio.gather(*(sut.scheduler.admit(admit_request(f"r{i}")) for i in range(100)))

        grants = [answer for answer in answers if isinstance(answer, Grant)]
        assert len(grants) == 5
        assert {grant.fence for grant in grants} == {1, 2, 3, 4, 5}
        assert await load_of(sut.scheduler) == {"a": (2, 200), "b": (3, 300)}
        assert (await sut.scheduler.pool_load("small")).leases == 5


class TestCandidates:
    async def test_a_full_pool_refuses_without_spill_and_passes_on_with_it(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0"))

        refusal = await refusal_of(sut.scheduler, admit_request("r1", "small", "large"))
        grant = await grant_of(sut.scheduler, admit_request("r1", "small", "large", spill=True))
        full = await refusal_of(sut.scheduler, admit_request("r2", "small", "large", spill=True))

        assert refusal == RefusalReason.CAPACITY
        assert grant.candidate.tier == "large"
        assert full == RefusalReason.CAPACITY

    async def test_an_empty_pool_is_passed_over_without_spill(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))

        grant = await grant_of(sut.scheduler, admit_request("r", "small", "large"))

        assert grant.candidate.tier == "large"

    async def test_a_pool_twice_with_different_adapters(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        twice = (candidate("small", adapter="legal@1"), candidate("small"), candidate("large"))

        grant = await grant_of(sut.scheduler, admit_request("r0", candidates=twice))
        refusal = await refusal_of(sut.scheduler, admit_request("r1", candidates=twice, spill=True))

        assert grant.candidate.adapter == "legal@1"
        assert refusal == RefusalReason.CAPACITY
        assert await load_of(sut.scheduler) == {"a": (1, 100)}


class TestSteps:
    async def test_the_same_step_again_returns_the_stored_grant(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b"))
        first = await grant_of(sut.scheduler, admit_request("r"))

        again = await grant_of(sut.scheduler, admit_request("r"))

        assert again == first
        assert (await sut.scheduler.pool_load("small")).leases == 1

    async def test_the_next_step_gives_the_old_slot_back(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        draft = await grant_of(sut.scheduler, admit_request("r", "small", "large"))

        escalation = await grant_of(
            sut.scheduler,
            admit_request("r", "small", "large", step=1, exclude_replicas=("a",)),
        )

        assert (draft.replica_id, escalation.replica_id) == ("a", "b")
        assert escalation.fence > draft.fence
        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await load_of(sut.scheduler, "large") == {"b": (1, 100)}
        assert (await grant_of(sut.scheduler, admit_request("other"))).replica_id == "a"

    async def test_the_next_step_may_name_only_another_pool(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r", "small"))

        escalation = await grant_of(sut.scheduler, admit_request("r", "large", step=1))

        assert escalation.replica_id == "b"
        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert (await sut.scheduler.pool_load("small")).leases == 0

    async def test_the_next_step_may_take_the_slot_it_gives_back(self, sut):
        """Also where that replica is the last of many full ones."""
        for i in range(10):
            await sut.scheduler.heartbeat(ready_replica(f"a{i}", max_concurrency=1))
        grants = [await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=i)) for i in range(10)]

        grant = await grant_of(sut.scheduler, admit_request("r9", step=1, tokens=77))

        assert grants[9].replica_id == grant.replica_id == "a9"
        assert (await load_of(sut.scheduler))["a9"] == (1, 77)

    async def test_tokens_of_the_old_slot_do_not_count_against_its_replica(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("other", tokens=20))
        await grant_of(sut.scheduler, admit_request("r", tokens=100))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("third", tokens=50))

        grant = await grant_of(sut.scheduler, admit_request("r", step=1))

        assert grant.replica_id == "a"
        assert await load_of(sut.scheduler) == {"a": (2, 120), "b": (1, 50)}

    async def test_a_refused_step_leaves_the_old_lease(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r"))

        refused = await refusal_of(sut.scheduler, admit_request("r", step=1, exclude_replicas=("a",)))

        assert refused == RefusalReason.NO_REPLICA
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await sut.scheduler.renew([grant], 60_000) == (True,)

    async def test_an_earlier_step_and_a_settled_request_have_ended(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("r", step=1))

        assert await sut.scheduler.admit(admit_request("r", step=0)) == Refusal(RefusalReason.ENDED, 0)
        await sut.scheduler.settle("r", ["small"], Usage(1, 1))
        for step in (0, 1, 2):
            assert await refusal_of(sut.scheduler, admit_request("r", step=step)) == RefusalReason.ENDED
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_fences_strictly_rise_across_pools(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=99))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=99))

        fences = [
            (await grant_of(sut.scheduler, admit_request(f"r{i}", tier))).fence
            for i, tier in enumerate(["small", "large", "small", "small", "large"])
        ]

        assert fences == sorted(set(fences))


class TestLeases:
    async def test_renew_extends(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r", lease_ttl_ms=100))

        assert await sut.scheduler.renew([grant], 60_000) == (True,)
        await sut.advance_ms(150)

        assert await sut.scheduler.reap(["small"]) == 0
        assert (await sut.scheduler.pool_load("small")).leases == 1

    async def test_renew_never_shortens(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r", lease_ttl_ms=60_000))

        assert await sut.scheduler.renew([grant], 50) == (True,)
        await sut.advance_ms(80)

        assert await sut.scheduler.reap(["small"]) == 0

    async def test_renew_takes_many_and_refuses_old_fences_and_lost_leases(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=9))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=9))
        old = await grant_of(sut.scheduler, admit_request("r0"))
        current = await grant_of(sut.scheduler, admit_request("r0", step=1))
        settled = await grant_of(sut.scheduler, admit_request("r1"))
        await sut.scheduler.settle("r1", ["small"], Usage(1, 1))
        other_pool = await grant_of(sut.scheduler, admit_request("r2", "large"))
        unknown = replace(current, request_id="never seen")

        renewed = await sut.scheduler.renew([old, current, settled, other_pool, unknown], 60_000)

        assert renewed == (False, True, False, True, False)
        assert await sut.scheduler.renew([], 60_000) == ()

    async def test_an_expired_lease_frees_its_slot_when_the_next_one_asks(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        lost = await grant_of(sut.scheduler, admit_request("r0", lease_ttl_ms=60))
        await sut.advance_ms(80)

        await grant_of(sut.scheduler, admit_request("r1", tokens=7))

        assert await load_of(sut.scheduler) == {"a": (1, 7)}
        assert await sut.scheduler.renew([lost], 60_000) == (False,)

    async def test_reap_frees_the_slots_of_all_pools_and_counts_them(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r0", lease_ttl_ms=60))
        await grant_of(sut.scheduler, admit_request("r1", "large", lease_ttl_ms=60))
        await grant_of(sut.scheduler, admit_request("r2"))
        await sut.advance_ms(80)

        assert await sut.scheduler.reap(["small", "large"]) == 2
        assert await sut.scheduler.reap(["small", "large"]) == 0
        assert await sut.scheduler.reap([]) == 0
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await load_of(sut.scheduler, "large") == {"b": (0, 0)}

    async def test_one_admit_ends_a_bounded_number_of_expired_leases(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1_000))
        requests = [admit_request(f"r{i}", lease_ttl_ms=1_000) for i in range(70)]
        await asyncio.gather(*(sut.scheduler.admit(request) for request in requests))
        await sut.advance_ms(1_050)

        await grant_of(sut.scheduler, admit_request("last"))

        assert await load_of(sut.scheduler) == {"a": (70 - 64 + 1, 700)}
        assert await sut.scheduler.reap(["small"]) == 6
        assert await load_of(sut.scheduler) == {"a": (1, 100)}


class TestMoney:
    @pytest.mark.parametrize(
        ("price", "usage", "cost"),
        [
            (Price(1, 0), Usage(1, 0), 1),
            (Price(0, 0), Usage(10, 10), 0),
            (Price(1_000_000, 1_000_000), Usage(3, 4), 7),
            (Price(100_000, 400_000), Usage(0, 0), 0),
            (Price(100_001, 400_000), Usage(10, 0), 2),
            (Price(999_999, 1), Usage(1, 1), 1),
            (Price(999_999, 2), Usage(1, 1), 2),
            (Price(100_000_000, 100_000_000), Usage(80_000_000, 0), 8_000_000_000),
            (Price(99_999_999, 1), Usage(80_000_000, 1), 7_999_999_921),
        ],
        ids=str,
    )
    async def test_cost_is_exact_and_rounded_up_once(self, sut, price, usage, cost):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await grant_of(
            sut.scheduler,
            admit_request("r", candidates=(candidate("small", price=price),), large_price=Price(0, 0)),
        )

        settlement = await sut.scheduler.settle("r", ["small"], usage)

        assert (settlement.cost_micro_usd, settlement.saved_micro_usd) == (cost, -cost)
        assert (await sut.scheduler.spend_today()).saved_micro_usd == -cost

    async def test_settle_frees_the_slot_and_adds_to_the_spend_of_the_day(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r0"))
        await grant_of(sut.scheduler, admit_request("r1"))
        await grant_of(sut.scheduler, admit_request("r2", "large"))

        usage = Usage(1_000, 100)
        settlements = [
            await sut.scheduler.settle(request_id, ["small", "large"], usage)
            for request_id in ("r0", "r1", "r2")
        ]

        small, large = SMALL_PRICE.cost_micro_usd(1_000, 100), LARGE_PRICE.cost_micro_usd(1_000, 100)
        assert [settlement.cost_micro_usd for settlement in settlements] == [small, small, large]
        assert [settlement.saved_micro_usd for settlement in settlements] == [large - small, large - small, 0]
        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await sut.scheduler.spend_today() == Spend(
            spent_micro_usd=2 * small + large,
            saved_micro_usd=2 * (large - small),
            calls=3,
            calls_by_tier=(("large", 1), ("small", 2)),
        )

    async def test_settle_again_returns_the_first_result_and_charges_nothing(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await grant_of(sut.scheduler, admit_request("r"))
        await grant_of(sut.scheduler, admit_request("other"))
        first = await sut.scheduler.settle("r", ["small"], Usage(1_000, 100))
        spend = await sut.scheduler.spend_today()

        again = await sut.scheduler.settle("r", ["small"], Usage(999_999, 999_999))

        assert first.first
        assert again == replace(first, first=False)
        assert await sut.scheduler.spend_today() == spend
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_many_settles_at_once_charge_once(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await grant_of(sut.scheduler, admit_request("r"))

        settlements = await asyncio.gather(
            *(sut.scheduler.settle("r", ["small"], Usage(1_000, 100)) for _ in range(20))
        )

        assert sum(settlement.first for settlement in settlements) == 1
        assert (await sut.scheduler.spend_today()).calls == 1

    async def test_an_expired_lease_is_still_charged_once(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("late", lease_ttl_ms=50))
        await grant_of(sut.scheduler, admit_request("reaped", lease_ttl_ms=50))
        await sut.advance_ms(80)
        late = await sut.scheduler.settle("late", ["small"], Usage(1_000, 100))
        assert await sut.scheduler.reap(["small"]) == 1

        reaped = await sut.scheduler.settle("reaped", ["small"], Usage(1_000, 100))

        assert late.first
        assert reaped.first
        assert not (await sut.scheduler.settle("reaped", ["small"], Usage(1_000, 100))).first
        assert (await sut.scheduler.spend_today()).calls == 2
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_prices_are_those_of_the_last_step(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r", "small"))
        await grant_of(sut.scheduler, admit_request("r", "large", step=1))

        settlement = await sut.scheduler.settle("r", ["small", "large"], Usage(1_000, 100))

        assert settlement.cost_micro_usd == LARGE_PRICE.cost_micro_usd(1_000, 100)
        assert (await sut.scheduler.spend_today()).calls_by_tier == (("large", 1),)

    async def test_settle_finds_the_lease_when_the_pools_do_not_name_it(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await grant_of(sut.scheduler, admit_request("r"))

        settlement = await sut.scheduler.settle("r", ["large"], Usage(1, 1))

        assert settlement.first
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_unknown_request(self, sut):
        assert await sut.scheduler.settle("never", ["small"], Usage(1_000, 100)) is None
        assert await sut.scheduler.spend_today() == Spend()

    async def test_a_day_ends(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.settle("r0", ["small"], Usage(1_000, 100))

        sut.clock.advance(DAY_MS)

        assert await sut.scheduler.spend_today() == Spend()


class TestReplicaDirectory:
    async def test_entry_comes_back_as_it_was_written(self, sut):
        state = ready_replica(
            "a|b",
            node="node",
            detail="ütf-8",
            kernels="triton",
            simulated=True,
            adapters=(("legal@1", "hot"), ("code@2", "warm")),
            rss_bytes=2**40,
            epoch=2**63 + 1,
        )
        await sut.scheduler.heartbeat(state)

        assert await sut.scheduler.pool_load("small") == PoolLoad(replicas=(state,), leases=0)
        assert await sut.scheduler.pool_load("large") == PoolLoad()

    async def test_a_strange_id_keeps_its_books(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a|req|%d"))
        await grant_of(sut.scheduler, admit_request("r|1"))
        assert await load_of(sut.scheduler) == {"a|req|%d": (1, 100)}

        await sut.scheduler.settle("r|1", ["small"], Usage(1, 1))

        assert await load_of(sut.scheduler) == {"a|req|%d": (0, 0)}

    async def test_deregister_stops_new_requests_and_lets_leases_end(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r0"))

        await sut.scheduler.deregister(ready_replica("a"))

        assert await refusal_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        assert (await sut.scheduler.pool_load("small")).replicas == ()
        assert await sut.scheduler.renew([grant], 60_000) == (True,)
        assert (await sut.scheduler.settle("r0", ["small"], Usage(1, 1))).first

    async def test_deregister_of_an_unknown_replica(self, sut):
        await sut.scheduler.deregister(ready_replica("never"))

        assert await sut.scheduler.pool_load("small") == PoolLoad()

    async def test_a_replica_that_comes_back_in_the_same_epoch_still_has_its_load(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.deregister(ready_replica("a"))
        await sut.scheduler.reap(["small"])
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))

        assert await refusal_of(sut.scheduler, admit_request("r1")) == RefusalReason.CAPACITY
        await sut.scheduler.settle("r0", ["small"], Usage(1, 1))
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_a_new_epoch_forgets_the_old_load(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=2))
        await grant_of(sut.scheduler, admit_request("r1", tokens=5))

        await sut.scheduler.settle("r0", ["small"], Usage(1, 1))

        assert await load_of(sut.scheduler) == {"a": (1, 5)}
        assert await refusal_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

    async def test_a_slot_from_before_a_restart_is_not_given_back_by_the_next_step(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=2))
        await grant_of(sut.scheduler, admit_request("r1"))

        assert await refusal_of(sut.scheduler, admit_request("r0", step=1)) == RefusalReason.CAPACITY

    async def test_an_old_epoch_that_comes_back_does_not_make_the_load_negative(self, sut):
        """Two processes fight for one replica id."""
        await sut.scheduler.heartbeat(ready_replica("a", epoch=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", epoch=2))
        await sut.scheduler.heartbeat(ready_replica("a", epoch=1))

        await sut.scheduler.settle("r0", ["small"], Usage(1, 1))

        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_dead_replicas_are_passed_over_and_do_not_hide_living_ones(self, sut):
        """Nobody reaps here: ten dead, idle replicas stand before the living one."""
        for i in range(10):
            await sut.scheduler.heartbeat(ready_replica(f"dead{i}"))
        await sut.scheduler.heartbeat(ready_replica("living", max_concurrency=9))
        for i in range(11):
            await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=10 + i))
        for i in range(10):
            await sut.scheduler.settle(f"r{i}", ["small"], Usage(1, 1))
        await sut.advance_ms(1_600)
        await sut.scheduler.heartbeat(ready_replica("living", max_concurrency=9))
        await sut.advance_ms(1_500)

        grant = await grant_of(sut.scheduler, admit_request("r"))

        assert grant.replica_id == "living"
        assert [state.replica_id for state in (await sut.scheduler.pool_load("small")).replicas] == ["living"]

    async def test_reap_forgets_dead_replicas_but_not_their_leases(self, sut):
        await sut.scheduler.heartbeat(ready_replica("idle"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0", exclude_replicas=("idle",)))
        await sut.advance_ms(3_050)

        assert await sut.scheduler.reap(["small"]) == 0
        assert await refusal_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        assert await sut.scheduler.pool_load("small") == PoolLoad(replicas=(), leases=1)

        # It was only out of reach: its slot is still taken.
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        assert await refusal_of(sut.scheduler, admit_request("r1")) == RefusalReason.CAPACITY


async def test_ping(sut):
    await sut.scheduler.ping()
