"""What every scheduler does: the same scenarios in memory and on a real Valkey. Replicas, steps and leases;
money is in test_scheduler_money.py, waiting in test_scheduler_queue.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.types import (
    LOCAL_FENCE,
    BudgetLine,
    Grant,
    HeldLease,
    Placement,
    PoolLoad,
    Refusal,
    RefusalReason,
    Renewal,
    ReplicaPhase,
    Waiting,
)
from tests.builders import LONG_LEASE_MS, NOON_MS, PATIENT, admit_request, candidate, ready_replica
from tests.scheduler_calls import (
    budget_of,
    cancel,
    grant_of,
    keep,
    load_of,
    reaped,
    reason_of,
    settle,
    waiters_of,
    waiting_of,
)


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
        assert grant.fence > 0
        assert grant.lease_expiry_ms == NOON_MS + LONG_LEASE_MS

    async def test_fewest_outstanding_tokens_wins_then_the_smaller_id(self, sut):
        for replica in "cba":
            await sut.scheduler.heartbeat(ready_replica(replica, max_concurrency=9))

        chosen = [
            (await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=tokens))).replica_id
            for i, tokens in enumerate([100, 50, 30, 20, 1, 1, 60])
        ]

        # After four: a 100, b 50, c 30 + 20. Then b 51, c 51, and b leads by its id.
        assert chosen == ["a", "b", "c", "c", "b", "c", "b"]

    async def test_cap_is_never_exceeded(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r0"))
        await grant_of(sut.scheduler, admit_request("r1"))

        answer = await sut.scheduler.admit(admit_request("r2"))

        # Predicted from the neutral placement: one slot for 1 s each.
        assert answer == Refusal(RefusalReason.CAPACITY, 1_000)

    async def test_token_cap_is_exceeded_by_an_idle_replica_only(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9, max_outstanding_tokens=100))
        assert await reason_of(sut.scheduler, admit_request("r0", tokens=999, exclude_replicas=("a",))) == (
            RefusalReason.NO_REPLICA
        )
        large = admit_request("large", tokens=999)
        await grant_of(sut.scheduler, large)
        assert await reason_of(sut.scheduler, admit_request("r1", tokens=1)) == RefusalReason.CAPACITY
        await settle(sut.scheduler, large)

        await grant_of(sut.scheduler, admit_request("r2", tokens=60))
        await grant_of(sut.scheduler, admit_request("r3", tokens=40))

        assert await reason_of(sut.scheduler, admit_request("r4", tokens=1)) == RefusalReason.CAPACITY
        assert await load_of(sut.scheduler) == {"a": (2, 100)}

    async def test_a_replica_with_room_is_found_beside_one_that_the_call_does_not_fit(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9, max_outstanding_tokens=100))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=9, max_outstanding_tokens=500))
        await grant_of(sut.scheduler, admit_request("r0", tokens=90))
        await grant_of(sut.scheduler, admit_request("r1", tokens=95))

        assert (await grant_of(sut.scheduler, admit_request("r2", tokens=50))).replica_id == "b"

    async def test_nobody_there(self, sut):
        assert await sut.scheduler.admit(admit_request("r")) == Refusal(RefusalReason.NO_REPLICA, 3_000)
        assert await reason_of(sut.scheduler, admit_request("r", candidates=())) == RefusalReason.NO_REPLICA

    @pytest.mark.parametrize(
        "phase", [phase for phase in ReplicaPhase if phase is not ReplicaPhase.READY], ids=str
    )
    async def test_only_ready_replicas_are_chosen(self, sut, phase):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("a", phase=phase))

        assert await reason_of(sut.scheduler, admit_request("r")) == RefusalReason.NO_REPLICA
        assert [phase] == [state.phase for state in (await sut.scheduler.pool_load("small")).replicas]

    async def test_load_survives_a_drain_that_is_called_off(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2, phase=ReplicaPhase.DRAINING))
        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))

        await grant_of(sut.scheduler, admit_request("r1"))

        assert await reason_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

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
        first = admit_request("r0")
        await grant_of(sut.scheduler, first)
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await grant_of(sut.scheduler, admit_request("r1"))
        await settle(sut.scheduler, first)
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))

        assert await reason_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

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
        alone = await reason_of(sut.scheduler, admit_request("r2", "small", exclude_replicas=("a",)))

        assert grant.replica_id == "b"
        assert alone == RefusalReason.NO_REPLICA

    async def test_hundred_at_once_on_five_slots(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=2))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=3))

        answers = await asyncio.gather(*(sut.scheduler.admit(admit_request(f"r{i}")) for i in range(100)))

        grants = [answer for answer in answers if isinstance(answer, Grant)]
        assert len(grants) == len({grant.fence for grant in grants}) == 5
        assert await load_of(sut.scheduler) == {"a": (2, 200), "b": (3, 300)}
        assert (await sut.scheduler.pool_load("small")).leases == 5


class TestScore:
    """The cheapest replica wins: the call, the tokens before it, a cold adapter, less a cached prefix."""

    async def test_a_longer_queue_is_weighed_against_a_cold_adapter(self, sut):
        """10 nano-USD per outstanding token, 5,000 for loading: worth it from 500 tokens on."""
        await sut.scheduler.heartbeat(
            ready_replica("warm", max_concurrency=9, adapters=(("legal@1", "loaded"),))
        )
        await sut.scheduler.heartbeat(ready_replica("cold", max_concurrency=9))
        terms = {
            "candidates": (candidate(adapter="legal@1"),),
            "placements": (Placement(per_token_nano_usd=10, cold_nano_usd=5_000),),
        }

        chosen = [
            (await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=250, **terms))).replica_id
            for i in range(4)
        ]

        # A tie at 500 goes to the one with fewer outstanding tokens.
        assert chosen == ["warm", "warm", "cold", "warm"]

    async def test_the_affine_replica_has_its_credit(self, sut):
        for replica in ("a", "b"):
            await sut.scheduler.heartbeat(ready_replica(replica, max_concurrency=9))
        terms = {"placements": (Placement(per_token_nano_usd=1, affine_replica="b", credit_nano_usd=150),)}

        chosen = [
            (await grant_of(sut.scheduler, admit_request(f"r{i}", **terms))).replica_id for i in range(4)
        ]

        assert chosen == ["b", "b", "a", "b"]

    async def test_an_affine_replica_behind_many_others_is_seen(self, sut):
        for i in range(9):
            await sut.scheduler.heartbeat(ready_replica(f"a{i}"))
        await sut.scheduler.heartbeat(ready_replica("z", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("r0", exclude_replicas=tuple(f"a{i}" for i in range(9))))
        near = (Placement(affine_replica="z", credit_nano_usd=101),)
        gone = (Placement(affine_replica="gone", credit_nano_usd=10**9),)

        assert (await grant_of(sut.scheduler, admit_request("r1", placements=near))).replica_id == "z"
        assert (await grant_of(sut.scheduler, admit_request("r2", placements=gone))).replica_id == "a0"

    async def test_a_holder_behind_many_others_is_seen(self, sut):
        for i in range(9):
            await sut.scheduler.heartbeat(ready_replica(f"a{i}"))
        await sut.scheduler.heartbeat(ready_replica("z", adapters=(("legal@1", "loaded"),)))
        request = admit_request(
            "r", candidates=(candidate(adapter="legal@1"),), placements=(Placement(cold_nano_usd=1),)
        )

        assert (await grant_of(sut.scheduler, request)).replica_id == "z"

    async def test_a_cold_price_without_an_adapter_says_nothing(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))

        await grant_of(sut.scheduler, admit_request("r", placements=(Placement(cold_nano_usd=5),)))

    async def test_spill_goes_where_it_is_cheapest(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=9))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=9))
        placements = (
            Placement(base_nano_usd=1_000, per_token_nano_usd=10),
            Placement(base_nano_usd=2_500, per_token_nano_usd=10),
        )

        chosen = [
            (
                await grant_of(
                    sut.scheduler,
                    admit_request(f"r{i}", "small", "large", spill=True, placements=placements),
                )
            ).replica_id
            for i in range(4)
        ]

        # 1000, 2000, then 3000 against 2500, then 3000 against 3500.
        assert chosen == ["a", "a", "b", "a"]

    async def test_between_equal_offers_the_earlier_candidate_wins(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "small"))
        await sut.scheduler.heartbeat(ready_replica("a", "large"))

        grant = await grant_of(sut.scheduler, admit_request("r", "small", "large", spill=True))

        assert grant.replica_id == "b"


class TestAdapters:
    @staticmethod
    def request(request_id, adapter="legal@1"):
        return admit_request(
            request_id,
            candidates=(candidate(adapter=adapter),),
            placements=(Placement(cold_nano_usd=10**9),),
        )

    async def holder(self, sut, request_id, adapter="legal@1"):
        """The replica that a call with the adapter goes to, if one holds it; the slot is given back."""
        request = self.request(request_id, adapter)
        grant = await grant_of(sut.scheduler, request)
        await cancel(sut.scheduler, request)
        return grant.replica_id

    @pytest.mark.parametrize("state", ["loaded", "host", "loading"])
    async def test_a_call_goes_where_it_waits_for_no_load_of_its_own(self, sut, state):
        for name, elsewhere in (("a", "disk"), ("c", "failed")):
            await sut.scheduler.heartbeat(ready_replica(name, adapters=(("legal@1", elsewhere),)))
        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("legal@1", state),)))

        assert await self.holder(sut, "r") == "b"

    async def test_a_cold_call_goes_where_fewer_load(self, sut):
        loads = (("x@1", "loading"), ("y@1", "loading"))
        await sut.scheduler.heartbeat(ready_replica("a", adapters=loads))
        await sut.scheduler.heartbeat(ready_replica("b", adapters=loads[:1]))

        assert await self.holder(sut, "r") == "b"

    async def test_cold_calls_part_before_the_replicas_have_said_so(self, sut):
        for name in ("a", "b", "c"):
            await sut.scheduler.heartbeat(ready_replica(name))

        replicas = {await self.holder(sut, f"r{number}", adapter=f"new{number}@1") for number in range(3)}

        assert replicas == {"a", "b", "c"}

    async def test_they_enter_and_leave_with_heartbeats(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("legal@1", "loaded"),)))
        assert await self.holder(sut, "r0") == "b"

        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("code@2", "loaded"),)))
        assert await self.holder(sut, "r1") == "a"

        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("legal@1", "loaded"),)))
        assert await self.holder(sut, "r2") == "b"

    async def test_a_replica_that_restarts_with_others_has_lost_the_old_ones(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("legal@1", "loaded"),)))

        await sut.scheduler.heartbeat(ready_replica("b", epoch=2, adapters=(("code@2", "loaded"),)))

        assert await self.holder(sut, "r") == "a"

    async def test_a_replica_that_was_dead_and_comes_back_without_them(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", adapters=(("legal@1", "loaded"),)))
        await sut.advance_ms(3_000)
        await sut.scheduler.reap(["small"])

        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b", epoch=2))

        assert await self.holder(sut, "r") == "a"

    async def test_dead_holders_do_not_hide_living_ones(self, sut):
        for i in range(9):
            await sut.scheduler.heartbeat(ready_replica(f"dead{i}", adapters=(("legal@1", "loaded"),)))
        await sut.advance_ms(3_000)
        await sut.scheduler.reap(["small"])
        for i in range(9):
            await sut.scheduler.heartbeat(ready_replica(f"cold{i}"))
        await sut.scheduler.heartbeat(ready_replica("z", adapters=(("legal@1", "loaded"),)))
        await grant_of(sut.scheduler, self.request("r0"))

        assert await self.holder(sut, "r") == "z"

    async def test_a_draining_replica_is_no_holder(self, sut):
        held = (("legal@1", "loaded"),)
        await sut.scheduler.heartbeat(ready_replica("b", adapters=held))
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b", adapters=held, phase=ReplicaPhase.DRAINING))
        assert await self.holder(sut, "r0") == "a"

        await sut.scheduler.heartbeat(ready_replica("b", adapters=held))
        assert await self.holder(sut, "r1") == "b"


class TestCandidates:
    async def test_a_full_pool_refuses_without_spill_and_passes_on_with_it(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0"))

        refusal = await reason_of(sut.scheduler, admit_request("r1", "small", "large"))
        grant = await grant_of(sut.scheduler, admit_request("r1", "small", "large", spill=True))
        full = await reason_of(sut.scheduler, admit_request("r2", "small", "large", spill=True))

        assert refusal == RefusalReason.CAPACITY
        assert grant.candidate.tier == "large"
        assert full == RefusalReason.CAPACITY

    async def test_an_empty_pool_is_passed_over_without_spill(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))

        grant = await grant_of(sut.scheduler, admit_request("r", "small", "large"))

        assert grant.candidate.tier == "large"

    async def test_two_pools_of_one_tier_compete(self, sut):
        """Also without spill."""
        tier = (
            candidate("small", pool="small"),
            candidate("small", pool="large"),
            candidate("top", pool="top"),
        )
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("c", "top"))

        first = await grant_of(sut.scheduler, admit_request("r0", candidates=tier))
        second = await grant_of(sut.scheduler, admit_request("r1", candidates=tier))
        third = await reason_of(sut.scheduler, admit_request("r2", candidates=tier))

        assert [first.replica_id, second.replica_id] == ["a", "b"]
        assert second.candidate == tier[1]
        assert third == RefusalReason.CAPACITY

    async def test_a_pool_twice_with_different_adapters(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        twice = (candidate("small", adapter="legal@1"), candidate("small"), candidate("large"))

        grant = await grant_of(sut.scheduler, admit_request("r0", candidates=twice))
        refusal = await reason_of(sut.scheduler, admit_request("r1", candidates=twice, spill=True))

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

    async def test_the_stored_grant_of_the_second_candidate(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        first = await grant_of(sut.scheduler, admit_request("r", "small", "large"))
        await keep(sut.scheduler, first, ttl_ms=2 * LONG_LEASE_MS)

        again = await grant_of(sut.scheduler, admit_request("r", "small", "large"))

        assert again == replace(first, lease_expiry_ms=NOON_MS + 2 * LONG_LEASE_MS)

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
        grants = [await grant_of(sut.scheduler, admit_request(f"r{i}", tokens=i + 1)) for i in range(10)]

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

        refused = await reason_of(sut.scheduler, admit_request("r", step=1, exclude_replicas=("a",)))

        assert refused == RefusalReason.NO_REPLICA
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await keep(sut.scheduler, grant) == [True]
        assert await grant_of(sut.scheduler, admit_request("r")) == grant

    async def test_a_step_that_must_wait_gives_its_slot_up(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        blocker = admit_request("blocker", "large")
        await grant_of(sut.scheduler, blocker)
        draft = await grant_of(sut.scheduler, admit_request("r", "small"))

        escalation = admit_request("r", "large", step=1, queue=PATIENT)
        waiting = await waiting_of(sut.scheduler, escalation)

        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await keep(sut.scheduler, draft) == [False]
        await settle(sut.scheduler, blocker)
        (grant,) = await sut.scheduler.poll([waiting], 1_000)
        assert grant == await grant_of(sut.scheduler, escalation)
        assert (grant.step, grant.replica_id) == (1, "b")
        await settle(sut.scheduler, escalation)
        assert await load_of(sut.scheduler, "large") == {"b": (0, 0)}

    async def test_a_step_that_may_not_wait_keeps_the_lease_of_the_step_before(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("blocker", "large"))
        draft = await grant_of(sut.scheduler, admit_request("r", "small"))

        assert await reason_of(sut.scheduler, admit_request("r", "large", step=1)) == RefusalReason.CAPACITY

        assert await keep(sut.scheduler, draft) == [True]
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_the_slot_of_a_draft_goes_to_who_waits_for_it(self, sut):
        """In the script that escalates, whether the escalation runs or waits."""
        for must_wait in (False, True):
            mark = f"{must_wait}"
            await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=1))
            await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
            blocker, draft = admit_request(f"blocker{mark}", "large"), admit_request(f"draft{mark}")
            if must_wait:
                await grant_of(sut.scheduler, blocker)
            await grant_of(sut.scheduler, draft)
            waiter = admit_request(f"waiter{mark}", queue=PATIENT)
            waiting = await waiting_of(sut.scheduler, waiter)

            await sut.scheduler.admit(replace(draft, step=1, candidates=(candidate("large"),), queue=PATIENT))

            assert [each[1] for each in await sut.notices()] == [waiter.request_id]
            (grant,) = await sut.scheduler.poll([waiting], 1_000)
            assert grant.replica_id == "a"
            for each in (*((blocker,) if must_wait else ()), draft, waiter):
                await settle(sut.scheduler, each)
            assert await waiters_of(sut.scheduler, "large") == 0

    async def test_the_place_of_a_waiting_step_goes_to_who_waits_behind_it(self, sut):
        await sut.scheduler.heartbeat(
            ready_replica("a", "small", max_concurrency=9, max_outstanding_tokens=100)
        )
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r0", tokens=50))
        await waiting_of(sut.scheduler, admit_request("big", tokens=60, queue=PATIENT))
        behind = await waiting_of(sut.scheduler, admit_request("behind", tokens=50, queue=PATIENT))

        await grant_of(sut.scheduler, admit_request("big", "large", step=1))

        (grant,) = await sut.scheduler.poll([behind], 1_000)
        assert isinstance(grant, Grant)
        assert await load_of(sut.scheduler) == {"a": (2, 100)}

    async def test_an_earlier_step_and_a_settled_request_have_ended(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        request = admit_request("r", step=1)
        await grant_of(sut.scheduler, request)

        assert await sut.scheduler.admit(admit_request("r", step=0)) == Refusal(RefusalReason.ENDED, 0)
        await settle(sut.scheduler, request)
        for step in (0, 1, 2):
            assert await reason_of(sut.scheduler, admit_request("r", step=step)) == RefusalReason.ENDED
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

        assert await keep(sut.scheduler, grant) == [True]
        await sut.advance_ms(150)

        assert await reaped(sut.scheduler) == {}
        assert (await sut.scheduler.pool_load("small")).leases == 1

    async def test_renew_never_shortens(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r", lease_ttl_ms=60_000))

        assert await keep(sut.scheduler, grant, ttl_ms=50) == [True]
        await sut.advance_ms(80)

        assert await reaped(sut.scheduler) == {}

    async def test_a_late_lease_that_nobody_has_ended_is_extended(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        grant = await grant_of(sut.scheduler, admit_request("r", lease_ttl_ms=100))
        await sut.advance_ms(100)
        assert (await sut.scheduler.pool_load("small")).leases == 0

        assert await keep(sut.scheduler, grant) == [True]

        assert await reaped(sut.scheduler) == {}
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_renew_takes_many_and_refuses_old_fences_and_lost_leases(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small", max_concurrency=9))
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=9))
        old = await grant_of(sut.scheduler, admit_request("r0"))
        current = await grant_of(sut.scheduler, admit_request("r0", step=1))
        ended = admit_request("r1")
        settled = await grant_of(sut.scheduler, ended)
        await settle(sut.scheduler, ended)
        other_pool = await grant_of(sut.scheduler, admit_request("r2", "large"))
        unknown = replace(current, request_id="never seen")

        kept = await keep(sut.scheduler, old, current, settled, other_pool, unknown)

        assert kept == [False, True, False, True, False]

    async def test_renew_counts_gateways_and_tells_the_epoch(self, sut):
        async def sign_of_life(gateway):
            return await sut.scheduler.renew(gateway, [], 1_000)

        assert await sign_of_life("g1") == Renewal((), "", 1)
        await sut.advance_ms(3_000)
        epoch = await sut.scheduler.rebuild([])
        assert await sign_of_life("g2") == Renewal((), epoch, 2)
        assert await sign_of_life("g2") == Renewal((), epoch, 2)
        await sut.advance_ms(2_000)
        assert await sign_of_life("g3") == Renewal((), epoch, 2)

    async def test_a_slot_stays_taken_until_its_expired_lease_is_reaped(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        lost = await grant_of(sut.scheduler, admit_request("r0", lease_ttl_ms=60))
        await sut.advance_ms(60)

        assert await reason_of(sut.scheduler, admit_request("r1", tokens=7)) == RefusalReason.CAPACITY
        assert await reaped(sut.scheduler) == {"r0": 0}
        await grant_of(sut.scheduler, admit_request("r1", tokens=7))

        assert await load_of(sut.scheduler) == {"a": (1, 7)}
        assert await keep(sut.scheduler, lost) == [False]

    async def test_a_request_that_was_reaped_has_ended(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        await grant_of(sut.scheduler, admit_request("r", lease_ttl_ms=60))
        await sut.advance_ms(60)
        await reaped(sut.scheduler)

        for step in (0, 1):
            assert await reason_of(sut.scheduler, admit_request("r", step=step)) == RefusalReason.ENDED

    async def test_reap_frees_the_slots_of_all_pools_and_names_them(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", "small"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        await grant_of(sut.scheduler, admit_request("r0", lease_ttl_ms=60, note="a note"))
        await grant_of(sut.scheduler, admit_request("r1", "large", lease_ttl_ms=60))
        await grant_of(sut.scheduler, admit_request("r2"))
        await sut.advance_ms(60)

        lost = await sut.scheduler.reap(["small", "large", "small"])

        assert [(each.request_id, each.note) for each in lost] == [("r0", "a note"), ("r1", "")]
        assert await reaped(sut.scheduler) == {}
        assert await sut.scheduler.reap([]) == ()
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await load_of(sut.scheduler, "large") == {"b": (0, 0)}

    async def test_one_reap_ends_a_bounded_number_the_oldest_first(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1_000))
        for i in range(501):
            await sut.scheduler.admit(admit_request(f"r{i}", lease_ttl_ms=2_000 - i))
        await sut.advance_ms(2_000)

        first, second = await reaped(sut.scheduler), await reaped(sut.scheduler)

        assert len(first) == 500
        assert list(second) == ["r0"]
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_many_reaps_at_once_end_a_request_once(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=9))
        for i in range(9):
            await grant_of(sut.scheduler, admit_request(f"r{i}", lease_ttl_ms=50))
        await sut.advance_ms(50)

        found = await asyncio.gather(*(reaped(sut.scheduler) for _ in range(5)))

        assert sorted(name for each in found for name in each) == [f"r{i}" for i in range(9)]
        assert (await sut.scheduler.spend_today()).lost_calls == 9


class TestReplicaDirectory:
    async def test_entry_comes_back_as_it_was_written(self, sut):
        state = ready_replica(
            "a|b",
            address="http://a",
            node="node",
            detail="ütf-8",
            kernels="triton",
            simulated=True,
            adapters=(("legal@1", "loaded"), ("code@2", "loading")),
            max_outstanding_tokens=10**9,
            rss_bytes=2**40,
            epoch=2**63 + 1,
        )
        await sut.scheduler.heartbeat(state)

        assert await sut.scheduler.pool_load("small") == PoolLoad(replicas=(state,), leases=0)
        assert await sut.scheduler.pool_load("large") == PoolLoad()

    async def test_a_strange_id_keeps_its_books(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a|req|%d", address="http://a"))
        request = admit_request("r|1")
        await grant_of(sut.scheduler, request)
        assert await load_of(sut.scheduler) == {"a|req|%d": (1, 100)}

        await settle(sut.scheduler, request)

        assert await load_of(sut.scheduler) == {"a|req|%d": (0, 0)}

    async def test_deregister_stops_new_requests_and_lets_leases_end(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        request = admit_request("r0")
        grant = await grant_of(sut.scheduler, request)

        await sut.scheduler.deregister(ready_replica("a"))

        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        assert (await sut.scheduler.pool_load("small")).replicas == ()
        assert await keep(sut.scheduler, grant) == [True]
        assert (await settle(sut.scheduler, request)).first

    async def test_deregister_of_an_unknown_replica(self, sut):
        await sut.scheduler.deregister(ready_replica("never"))

        assert await sut.scheduler.pool_load("small") == PoolLoad()

    async def test_a_replica_that_comes_back_in_the_same_epoch_still_has_its_load(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        request = admit_request("r0")
        await grant_of(sut.scheduler, request)
        await sut.scheduler.deregister(ready_replica("a"))
        await sut.scheduler.reap(["small"])
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))

        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.CAPACITY
        await settle(sut.scheduler, request)
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_a_new_epoch_forgets_the_old_load(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=1))
        old = admit_request("r0")
        await grant_of(sut.scheduler, old)
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=2))
        await grant_of(sut.scheduler, admit_request("r1", tokens=5))

        await settle(sut.scheduler, old)

        assert await load_of(sut.scheduler) == {"a": (1, 5)}
        assert await reason_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY

    async def test_a_slot_from_before_a_restart_is_not_given_back_by_the_next_step(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=1))
        await grant_of(sut.scheduler, admit_request("r0"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1, epoch=2))
        await grant_of(sut.scheduler, admit_request("r1"))

        assert await reason_of(sut.scheduler, admit_request("r0", step=1)) == RefusalReason.CAPACITY

    async def test_an_old_epoch_that_comes_back_does_not_make_the_load_negative(self, sut):
        """Two processes fight for one replica id."""
        await sut.scheduler.heartbeat(ready_replica("a", epoch=1))
        request = admit_request("r0")
        await grant_of(sut.scheduler, request)
        await sut.scheduler.heartbeat(ready_replica("a", epoch=2))
        await sut.scheduler.heartbeat(ready_replica("a", epoch=1))

        await settle(sut.scheduler, request)

        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_dead_replicas_are_passed_over_and_do_not_hide_living_ones(self, sut):
        """Nobody reaps here: ten dead, idle replicas stand before the living one."""
        for i in range(10):
            await sut.scheduler.heartbeat(ready_replica(f"dead{i}"))
        await sut.scheduler.heartbeat(ready_replica("living", max_concurrency=9))
        requests = [admit_request(f"r{i}", tokens=10 + i) for i in range(11)]
        for request in requests:
            await grant_of(sut.scheduler, request)
        for request in requests[:10]:
            await settle(sut.scheduler, request)
        await sut.advance_ms(1_600)
        await sut.scheduler.heartbeat(ready_replica("living", max_concurrency=9))
        await sut.advance_ms(1_400)

        grant = await grant_of(sut.scheduler, admit_request("r"))

        assert grant.replica_id == "living"
        assert [state.replica_id for state in (await sut.scheduler.pool_load("small")).replicas] == ["living"]

    async def test_dead_and_full_replicas_are_no_capacity(self, sut):
        for i in range(6):
            await sut.scheduler.heartbeat(ready_replica(f"dead{i}", max_concurrency=1))
        for i in range(6):
            await grant_of(sut.scheduler, admit_request(f"r{i}"))
        await sut.advance_ms(2_999)
        assert await reason_of(sut.scheduler, admit_request("r")) == RefusalReason.CAPACITY
        await sut.advance_ms(1)

        assert await reason_of(sut.scheduler, admit_request("r")) == RefusalReason.NO_REPLICA

    async def test_reap_forgets_dead_replicas_but_not_their_leases(self, sut):
        await sut.scheduler.heartbeat(ready_replica("idle"))
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("r0", exclude_replicas=("idle",)))
        await sut.advance_ms(3_000)

        assert await reaped(sut.scheduler) == {}
        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.NO_REPLICA
        assert await sut.scheduler.pool_load("small") == PoolLoad(replicas=(), leases=1)

        # It was only out of reach: its slot is still taken.
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.CAPACITY


class TestReregister:
    """After data loss. Money: test_scheduler_money.py."""

    async def test_a_lease_comes_back_under_a_new_fence(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        request = admit_request("r")
        grant = await grant_of(sut.scheduler, request)
        await sut.advance_ms(100)
        await sut.lose_everything()
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        assert await keep(sut.scheduler, grant) == [False]

        back = await sut.scheduler.reregister(request, HeldLease(grant))

        assert back == replace(grant, fence=back.fence)
        assert back.fence > grant.fence
        assert await keep(sut.scheduler, grant, back) == [False, True]
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await reason_of(sut.scheduler, admit_request("r1")) == RefusalReason.CAPACITY
        await settle(sut.scheduler, request)
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_before_the_replica_has_reported(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        requests = [admit_request(f"r{i}") for i in range(2)]
        grants = [await grant_of(sut.scheduler, requests[0])]
        grants.append(replace(grants[0], request_id="r1"))
        await sut.advance_ms(100)
        await sut.lose_everything()
        for request, grant in zip(requests, grants, strict=True):
            assert await sut.scheduler.reregister(request, HeldLease(grant))
        assert await reason_of(sut.scheduler, admit_request("r2")) == RefusalReason.NO_REPLICA

        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))

        assert await load_of(sut.scheduler) == {"a": (2, 200)}
        await settle(sut.scheduler, requests[0])
        assert await reason_of(sut.scheduler, admit_request("r2")) == RefusalReason.CAPACITY
        await settle(sut.scheduler, requests[1])
        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        await grant_of(sut.scheduler, admit_request("r2"))

    async def test_of_a_known_request_changes_nothing(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        running, ended = admit_request("r0"), admit_request("r1")
        grants = [await grant_of(sut.scheduler, each) for each in (running, ended)]
        await settle(sut.scheduler, ended)

        for request, grant in zip((running, ended), grants, strict=True):
            assert await sut.scheduler.reregister(request, HeldLease(grant)) is None

        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        assert await keep(sut.scheduler, grants[0]) == [True]

    async def test_two_gateways_bring_a_call_back_once(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        request = admit_request("r")
        grant = await grant_of(sut.scheduler, request)
        await sut.lose_everything()
        await sut.scheduler.heartbeat(ready_replica("a"))

        answers = await asyncio.gather(
            *(sut.scheduler.reregister(request, HeldLease(grant)) for _ in range(5))
        )

        assert sum(each is not None for each in answers) == 1
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_the_same_step_again_returns_what_was_brought_back(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        request = admit_request("r", "small", "large", step=1)
        grant = await grant_of(sut.scheduler, request)
        await sut.lose_everything()
        await sut.scheduler.heartbeat(ready_replica("b", "large"))

        back = await sut.scheduler.reregister(request, HeldLease(grant))

        assert await grant_of(sut.scheduler, request) == back
        assert await reason_of(sut.scheduler, replace(request, step=0)) == RefusalReason.ENDED

    async def test_what_ran_alone_takes_its_place_from_where_it_waits(self, sut):
        """Its ticket would run out while it runs, and its hold would be given to others."""
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=0))
        await grant_of(sut.scheduler, admit_request("blocker"))
        line = BudgetLine("tenant:acme", "20261122", 1_000)
        request = admit_request("r", queue=PATIENT, budgets=(line,), hold_micro_usd=300)
        assert isinstance(await sut.scheduler.admit(request), Waiting)
        alone = Grant("r", 0, candidate(), "b", "http://b", LOCAL_FENCE, 0)

        back = await sut.scheduler.reregister(request, HeldLease(alone, dispatched=True))

        assert (back.replica_id, back.fence > LOCAL_FENCE) == ("b", True)
        assert await load_of(sut.scheduler) == {"a": (1, 100), "b": (1, 100)}
        assert await waiters_of(sut.scheduler) == 0
        assert await budget_of(sut.scheduler) == (0, 300)
        assert await keep(sut.scheduler, back) == [True]
        assert await sut.scheduler.reregister(request, HeldLease(back)) is None
        await settle(sut.scheduler, request, 200)
        assert await budget_of(sut.scheduler) == (200, 0)

    async def test_or_from_a_lease_that_nobody_heard_of(self, sut):
        """The store hung, and carried the admission out after it had been given up. Its slot goes on."""
        await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        request, other = admit_request("r"), admit_request("other", queue=PATIENT)
        unheard = await grant_of(sut.scheduler, request)
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=0))
        waiting = await sut.scheduler.admit(other)
        alone = replace(unheard, replica_id="b", address="http://b", fence=LOCAL_FENCE)

        back = await sut.scheduler.reregister(request, HeldLease(alone))

        assert await keep(sut.scheduler, unheard, back) == [False, True]
        (answer,) = await sut.scheduler.poll([waiting], 1_000)
        assert isinstance(answer, Grant)
        assert await load_of(sut.scheduler) == {"a": (1, 100), "b": (1, 100)}

    async def test_but_not_once_it_is_over_or_elsewhere(self, sut):
        await sut.scheduler.heartbeat(ready_replica("a"))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        ended, escalated = admit_request("r0"), admit_request("r1", "large", step=1)
        await grant_of(sut.scheduler, ended)
        await settle(sut.scheduler, ended)
        current = await grant_of(sut.scheduler, escalated)
        draft = admit_request("r1")

        for request in (ended, draft):
            alone = Grant(request.request_id, 0, candidate(), "a", "http://a", LOCAL_FENCE, 0)
            assert await sut.scheduler.reregister(request, HeldLease(alone)) is None

        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await keep(sut.scheduler, current) == [True]

    async def test_the_load_of_a_replica_that_never_comes_back_is_forgotten(self, sut):
        request = admit_request("r")
        grant = Grant("r", 0, candidate(), "ghost", "http://ghost", 1, 0)
        await sut.scheduler.reregister(request, HeldLease(grant))
        await sut.scheduler.reap(["small"])
        await settle(sut.scheduler, request)
        await sut.scheduler.reap(["small"])

        await sut.scheduler.heartbeat(ready_replica("ghost", max_concurrency=1))

        assert await load_of(sut.scheduler) == {"ghost": (0, 0)}


async def test_ping(sut):
    await sut.scheduler.ping()
