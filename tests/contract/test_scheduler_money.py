"""What every scheduler does about money: rates, budgets, the end of a call, the return from data loss. The
same scenarios in memory and on a real Valkey.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.types import (
    BudgetLine,
    BudgetState,
    Grant,
    HeldLease,
    RateCharge,
    Refusal,
    RefusalReason,
    Settlement,
    SettleRequest,
    Spend,
)
from tests.builders import PATIENT, admit_request, candidate, ready_replica, settle_request
from tests.scheduler_calls import (
    budget_of,
    cancel,
    grant_of,
    keep,
    load_of,
    polled,
    reaped,
    reason_of,
    refusal_of,
    settle,
    waiting_of,
)

DAY_MS = 86_400_000
MINUTE_US = 60_000_000


def per_minute(
    limit: int, cost: int = 1, burst: int | None = None, bucket: str = "requests:k1"
) -> RateCharge:
    return RateCharge(bucket, cost * MINUTE_US // limit, (burst or limit) * MINUTE_US // limit)


def budget(limit, owner="tenant:acme", window="20261122", ttl_ms=0):
    return BudgetLine(owner, window, limit, ttl_ms)


@pytest.fixture
async def sut(scheduler):
    """Room for every call."""
    await scheduler.scheduler.heartbeat(ready_replica("a", max_concurrency=1_000))
    return scheduler


async def alive(sut):
    await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=1_000))


class TestRates:
    async def test_a_burst_then_the_steady_rate(self, sut):
        """60 per minute, 3 at once."""
        rates = (per_minute(60, burst=3),)

        answers = [await sut.scheduler.admit(admit_request(f"r{i}", rates=rates)) for i in range(5)]

        assert [isinstance(answer, Grant) for answer in answers] == [True] * 3 + [False] * 2
        assert answers[3:] == [Refusal(RefusalReason.RATE, 1_000, "requests:k1")] * 2
        await sut.advance_ms(999)
        await alive(sut)
        assert await refusal_of(sut.scheduler, admit_request("r5", rates=rates)) == Refusal(
            RefusalReason.RATE, 1, "requests:k1"
        )
        await sut.advance_ms(1)
        await grant_of(sut.scheduler, admit_request("r5", rates=rates))
        assert await reason_of(sut.scheduler, admit_request("r6", rates=rates)) == RefusalReason.RATE
        await sut.advance_ms(2_900)
        await alive(sut)
        await sut.advance_ms(57_100)
        await alive(sut)
        again = [await sut.scheduler.admit(admit_request(f"s{i}", rates=rates)) for i in range(4)]
        assert [isinstance(answer, Grant) for answer in again] == [True] * 3 + [False]

    async def test_who_comes_back_when_told_is_let_in(self, sut):
        rates = (per_minute(7, cost=3, burst=9),)
        let_in = refused = 0
        for i in range(12):
            answer = await sut.scheduler.admit(admit_request(f"r{i}", rates=rates))
            if isinstance(answer, Grant):
                let_in += 1
                continue
            refused += 1
            await sut.advance_ms(answer.retry_after_ms)
            await alive(sut)
            await grant_of(sut.scheduler, admit_request(f"r{i}", rates=rates))

        assert (let_in, refused) == (3, 9)

    async def test_more_than_the_burst_is_never_possible(self, sut):
        rates = (per_minute(60, bucket="requests:k1"), per_minute(1_000, cost=1_001, bucket="tokens:k1"))

        refusal = await refusal_of(sut.scheduler, admit_request("r", rates=rates))

        assert refusal == Refusal(RefusalReason.TOO_LARGE, 0, "tokens:k1")

    async def test_exactly_the_burst_is_possible(self, sut):
        await grant_of(sut.scheduler, admit_request("r", rates=(per_minute(1_000, cost=1_000),)))

    async def test_a_refusal_takes_from_no_bucket(self, sut):
        both = (per_minute(60, burst=2, bucket="requests:k1"), per_minute(100, cost=60, bucket="tokens:k1"))
        await grant_of(sut.scheduler, admit_request("r0", rates=both))
        assert (await refusal_of(sut.scheduler, admit_request("r1", rates=both))).detail == "tokens:k1"
        no_room = admit_request("r2", rates=both[:1], exclude_replicas=("a",))
        assert await reason_of(sut.scheduler, no_room) == RefusalReason.NO_REPLICA
        poor = admit_request("r3", rates=both[:1], budgets=(budget(9),), hold_micro_usd=10)
        assert await reason_of(sut.scheduler, poor) == RefusalReason.BUDGET

        await grant_of(sut.scheduler, admit_request("r4", rates=both[:1]))

    async def test_free_calls_take_nothing(self, sut):
        free = (RateCharge("tokens:k1", 0, 0),)

        for i in range(3):
            await grant_of(sut.scheduler, admit_request(f"r{i}", rates=free))

    async def test_settle_gives_back_what_was_not_used(self, sut):
        request = admit_request("r0", rates=(per_minute(100, cost=100),))
        await grant_of(sut.scheduler, request)
        await settle(sut.scheduler, request, rates=(("requests:k1", 70 * MINUTE_US // 100),))

        await grant_of(sut.scheduler, admit_request("r1", rates=(per_minute(100, cost=70),)))
        refusal = await refusal_of(sut.scheduler, admit_request("r2", rates=(per_minute(100, cost=1),)))
        assert refusal.retry_after_ms == 600

    async def test_settle_gives_back_no_more_than_a_full_bucket(self, sut):
        request = admit_request("r0", rates=(per_minute(100, cost=10),))
        await grant_of(sut.scheduler, request)
        await settle(sut.scheduler, request, rates=(("requests:k1", 10 * MINUTE_US),))

        await grant_of(sut.scheduler, admit_request("r1", rates=(per_minute(100, cost=100),)))
        assert await reason_of(sut.scheduler, admit_request("r2", rates=(per_minute(100),))) == (
            RefusalReason.RATE
        )

    async def test_settle_charges_what_was_used_above_the_estimate(self, sut):
        request = admit_request("r0", rates=(per_minute(100, cost=10),))
        await grant_of(sut.scheduler, request)
        await sut.advance_ms(60_000)  # the bucket is full again
        await alive(sut)
        await settle(sut.scheduler, request, rates=(("requests:k1", -150 * MINUTE_US // 100),))

        refusal = await refusal_of(sut.scheduler, admit_request("r1", rates=(per_minute(100, cost=100),)))

        assert refusal.retry_after_ms == 90_000

    async def test_a_cancelled_call_gets_everything_back(self, sut):
        request = admit_request("r0", rates=(per_minute(60, burst=1),))
        await grant_of(sut.scheduler, request)
        await cancel(sut.scheduler, request)
        await cancel(sut.scheduler, request)

        await grant_of(sut.scheduler, admit_request("r1", rates=(per_minute(60, burst=1),)))
        assert await reason_of(sut.scheduler, admit_request("r2", rates=(per_minute(60, burst=1),))) == (
            RefusalReason.RATE
        )

    async def test_a_higher_step_pays_no_rate(self, sut):
        rates = (per_minute(60, burst=1),)
        await grant_of(sut.scheduler, admit_request("r", rates=rates))

        await grant_of(sut.scheduler, admit_request("r", rates=rates, step=1))

    async def test_hundred_at_once_with_a_burst_of_five(self, sut):
        rates = (per_minute(1, burst=5),)

        answers = await asyncio.gather(
            *(sut.scheduler.admit(admit_request(f"r{i}", rates=rates)) for i in range(100))
        )

        assert sum(isinstance(answer, Grant) for answer in answers) == 5


class TestBudgets:
    async def test_hold_then_cost(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)
        assert await budget_of(sut.scheduler) == (0, 300)

        settlement = await settle(sut.scheduler, request, 120, saved_micro_usd=7)

        assert settlement == Settlement(120, 7, first=True)
        assert await budget_of(sut.scheduler) == (120, 0)

    async def test_the_last_micro_usd_may_be_held(self, sut):
        line = (budget(1_000),)
        await grant_of(sut.scheduler, admit_request("r0", budgets=line, hold_micro_usd=999))

        refusal = await refusal_of(sut.scheduler, admit_request("r1", budgets=line, hold_micro_usd=2))
        await grant_of(sut.scheduler, admit_request("r2", budgets=line, hold_micro_usd=1))

        assert refusal == Refusal(RefusalReason.BUDGET, 0, "tenant:acme 20261122")
        assert await budget_of(sut.scheduler) == (0, 1_000)

    async def test_of_several_budgets_one_refuses_and_nothing_is_taken(self, sut):
        roomy, tight = budget(10_000), budget(100, "key:k1", "total")
        rates = (per_minute(60, burst=1),)
        for lines in ((roomy, tight), (tight, roomy)):
            request = admit_request("r", budgets=lines, hold_micro_usd=101, rates=rates)
            assert (await refusal_of(sut.scheduler, request)).detail == "key:k1 total"

        assert await budget_of(sut.scheduler) == (0, 0)
        assert await budget_of(sut.scheduler, "key:k1", "total") == (0, 0)
        await grant_of(
            sut.scheduler, admit_request("r", budgets=(roomy, tight), hold_micro_usd=100, rates=rates)
        )
        assert await budget_of(sut.scheduler, "key:k1", "total") == (0, 100)

    async def test_a_call_without_a_slot_holds_nothing(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300, exclude_replicas=("a",))

        assert await reason_of(sut.scheduler, request) == RefusalReason.NO_REPLICA

        assert await budget_of(sut.scheduler) == (0, 0)

    async def test_hundred_at_once_with_a_budget_for_five(self, sut):
        line = (budget(599),)

        answers = await asyncio.gather(
            *(
                sut.scheduler.admit(admit_request(f"r{i}", budgets=line, hold_micro_usd=100))
                for i in range(100)
            )
        )

        assert sum(isinstance(answer, Grant) for answer in answers) == 5
        assert await budget_of(sut.scheduler) == (0, 500)

    async def test_a_cancelled_call_costs_nothing(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)

        settlement = await settle(sut.scheduler, request, 120, cancelled=True)

        assert settlement == Settlement(0, 0, first=True)
        assert await budget_of(sut.scheduler) == (0, 0)
        assert await sut.scheduler.spend_today() == Spend()

    async def test_cost_above_the_hold_is_capped_and_counted(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)

        settlement = await settle(sut.scheduler, request, 350, saved_micro_usd=10)

        assert settlement == Settlement(300, 60, first=True)
        assert await budget_of(sut.scheduler) == (300, 0)
        assert await sut.scheduler.spend_today() == Spend(
            spent_micro_usd=300,
            saved_micro_usd=60,
            calls=1,
            calls_by_tier=(("small", 1),),
            overrun_micro_usd=50,
        )

    async def test_without_a_budget_there_is_no_cap(self, sut):
        request = admit_request("r", hold_micro_usd=300)
        await grant_of(sut.scheduler, request)

        assert await settle(sut.scheduler, request, 350) == Settlement(350, 0, first=True)
        assert (await sut.scheduler.spend_today()).overrun_micro_usd == 0

    async def test_an_escalation_stays_inside_one_hold(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        request = admit_request("r", budgets=(budget(400),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)

        escalation = replace(request, step=1, candidates=(candidate("large"),), hold_micro_usd=999)
        await grant_of(sut.scheduler, escalation)

        assert await budget_of(sut.scheduler) == (0, 300)
        await settle(sut.scheduler, request, 280, tier="large")
        assert await budget_of(sut.scheduler) == (280, 0)
        assert (await sut.scheduler.spend_today()).calls_by_tier == (("large", 1),)

    async def test_windows_are_apart(self, sut):
        today = admit_request("r0", budgets=(budget(100),), hold_micro_usd=100)
        tomorrow = admit_request("r1", budgets=(budget(100, window="20261123"),), hold_micro_usd=100)
        await grant_of(sut.scheduler, today)
        await grant_of(sut.scheduler, tomorrow)

        await settle(sut.scheduler, today, 40)

        assert await budget_of(sut.scheduler) == (40, 0)
        assert await budget_of(sut.scheduler, window="20261123") == (0, 100)

    async def test_a_window_is_forgotten_when_its_time_is_over(self, sut):
        line = (budget(100, ttl_ms=5_000),)
        early, late = (admit_request(f"r{i}", budgets=line, hold_micro_usd=50) for i in range(2))
        await grant_of(sut.scheduler, early)
        await sut.advance_ms(2_000)
        await grant_of(sut.scheduler, late)
        await settle(sut.scheduler, early, 20)
        assert await budget_of(sut.scheduler) == (20, 50)

        await sut.advance_ms(3_000)

        assert await budget_of(sut.scheduler) == (0, 0)
        assert (await settle(sut.scheduler, late, 30)).cost_micro_usd == 30
        assert await budget_of(sut.scheduler) == (0, 0)  # and no key is left that nobody would forget
        assert (await sut.scheduler.spend_today()).spent_micro_usd == 50

    async def test_large_amounts_are_exact(self, sut):
        limit = 2**53 - 1
        first = admit_request("r0", budgets=(budget(limit),), hold_micro_usd=limit - 1)
        await grant_of(sut.scheduler, first)
        await settle(sut.scheduler, first, limit - 1)

        await grant_of(sut.scheduler, admit_request("r1", budgets=(budget(limit),), hold_micro_usd=1))

        assert await budget_of(sut.scheduler) == (limit - 1, 1)
        assert await reason_of(
            sut.scheduler, admit_request("r2", budgets=(budget(limit),), hold_micro_usd=1)
        ) == (RefusalReason.BUDGET)

    async def test_states_of_many(self, sut):
        await grant_of(sut.scheduler, admit_request("r", budgets=(budget(100),), hold_micro_usd=40))

        states = await sut.scheduler.budget_states(
            [("nobody", "20261122"), ("tenant:acme", "20261122"), ("tenant:acme", "20261123")]
        )

        assert states == (BudgetState(), BudgetState(0, 40), BudgetState())
        assert await sut.scheduler.budget_states([]) == ()


class TestSettle:
    async def test_settle_frees_the_slot_and_adds_to_the_spend_of_the_day(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        requests = [admit_request("r0"), admit_request("r1"), admit_request("r2", "large")]
        for request in requests:
            await grant_of(sut.scheduler, request)

        for request, cost, saved, tier in zip(
            requests, (10, 20, 300), (5, 6, -2), ("small", "small", "large"), strict=True
        ):
            await settle(sut.scheduler, request, cost, saved_micro_usd=saved, tier=tier)

        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await sut.scheduler.spend_today() == Spend(
            spent_micro_usd=330, saved_micro_usd=9, calls=3, calls_by_tier=(("large", 1), ("small", 2))
        )

    async def test_settle_again_returns_the_first_result_and_charges_nothing(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)
        await grant_of(sut.scheduler, admit_request("other"))
        first = await settle(sut.scheduler, request, 100, saved_micro_usd=3)
        spend = await sut.scheduler.spend_today()

        again = await settle(sut.scheduler, request, 299, saved_micro_usd=1)
        cancelled = await cancel(sut.scheduler, request)

        assert first.first
        assert again == cancelled == replace(first, first=False)
        assert await sut.scheduler.spend_today() == spend
        assert await budget_of(sut.scheduler) == (100, 0)
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_many_settles_at_once_charge_once(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)

        settlements = await asyncio.gather(*(settle(sut.scheduler, request, 100) for _ in range(20)))

        assert sum(settlement.first for settlement in settlements) == 1
        assert (await sut.scheduler.spend_today()).calls == 1
        assert await budget_of(sut.scheduler) == (100, 0)

    async def test_settle_finds_the_lease_when_the_pools_do_not_name_it(self, sut):
        request = admit_request("r")
        await grant_of(sut.scheduler, request)

        assert (await settle(sut.scheduler, request, pools=("large",))).first

        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_unknown_request(self, sut):
        assert await sut.scheduler.settle(settle_request("never", 100)) is None
        assert await sut.scheduler.spend_today() == Spend()

    async def test_a_request_is_remembered_for_a_day(self, sut):
        request = admit_request("r")
        await grant_of(sut.scheduler, request)
        await settle(sut.scheduler, request, 100)
        await sut.advance_ms(DAY_MS - 1)
        await sut.scheduler.reap(["small"])
        assert not (await settle(sut.scheduler, request, 100)).first

        await sut.advance_ms(1)

        assert await sut.scheduler.settle(settle_request("r", 100)) is None

    async def test_a_day_ends(self, sut):
        request = admit_request("r0")
        await grant_of(sut.scheduler, request)
        await settle(sut.scheduler, request, 100)

        await sut.advance_ms(DAY_MS)

        assert await sut.scheduler.spend_today() == Spend()

    async def test_refusals_are_counted(self, sut):
        await reason_of(sut.scheduler, admit_request("r0", exclude_replicas=("a",)))
        for i in range(2):
            await reason_of(sut.scheduler, admit_request(f"s{i}", budgets=(budget(0),), hold_micro_usd=1))

        assert await sut.scheduler.spend_today() == Spend(refused=(("budget", 2), ("no_replica", 1)))


class TestReap:
    """A call that an engine may have run is charged its hold; others are refunded."""

    async def lost_call(self, sut, *, sent: bool, charge_lost: bool = True):
        request = admit_request(
            "r",
            budgets=(budget(1_000),),
            hold_micro_usd=300,
            rates=(per_minute(1),),
            lease_ttl_ms=1_000,
        )
        grant = await grant_of(sut.scheduler, request)
        await keep(sut.scheduler, grant, ttl_ms=1_000, sent=sent)
        await sut.advance_ms(1_000)
        await alive(sut)
        return request, await reaped(sut.scheduler, charge_lost=charge_lost)

    async def test_sent_to_an_engine(self, sut):
        _, lost = await self.lost_call(sut, sent=True)

        assert lost == {"r": 300}
        assert await budget_of(sut.scheduler) == (300, 0)
        assert await sut.scheduler.spend_today() == Spend(spent_micro_usd=300, lost_calls=1)

    async def test_never_sent(self, sut):
        request, lost = await self.lost_call(sut, sent=False)

        assert lost == {"r": 0}
        assert await budget_of(sut.scheduler) == (0, 0)
        assert await sut.scheduler.spend_today() == Spend(lost_calls=1)
        await grant_of(sut.scheduler, replace(request, request_id="next"))  # its rate came back as well

    async def test_sent_but_lost_calls_are_free_here(self, sut):
        _, lost = await self.lost_call(sut, sent=True, charge_lost=False)

        assert lost == {"r": 0}
        assert await budget_of(sut.scheduler) == (0, 0)

    async def test_the_rate_of_a_call_that_was_sent_is_used_up(self, sut):
        request, _ = await self.lost_call(sut, sent=True, charge_lost=False)

        refusal = await refusal_of(sut.scheduler, replace(request, request_id="next"))

        assert refusal == Refusal(RefusalReason.RATE, 59_000, "requests:k1")

    async def test_a_renewal_that_says_less_does_not_unsend(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300, lease_ttl_ms=1_000)
        grant = await grant_of(sut.scheduler, request)
        await keep(sut.scheduler, grant, sent=True, ttl_ms=1_000)
        await keep(sut.scheduler, grant, sent=False, ttl_ms=1_000)
        await sut.advance_ms(1_000)

        assert await reaped(sut.scheduler) == {"r": 300}

    async def test_a_draft_that_ran_makes_its_escalation_no_call_that_never_ran(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large"))
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300, lease_ttl_ms=1_000)
        await keep(sut.scheduler, await grant_of(sut.scheduler, request), ttl_ms=1_000)
        await grant_of(sut.scheduler, replace(request, step=1, candidates=(candidate("large"),)))
        await sut.advance_ms(1_000)

        assert await reaped(sut.scheduler) == {"r": 300}

    async def test_also_where_the_escalation_had_to_wait(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        blocker = admit_request("blocker", "large")
        await grant_of(sut.scheduler, blocker)
        charges = []
        for name, is_granted in (("r0", False), ("r1", True)):
            request = admit_request(name, budgets=(budget(1_000),), hold_micro_usd=300, lease_ttl_ms=1_000)
            await keep(sut.scheduler, await grant_of(sut.scheduler, request))
            await waiting_of(
                sut.scheduler,
                replace(
                    request,
                    step=1,
                    candidates=(candidate("large"),),
                    queue=PATIENT,
                    deadline_ms=1_000,
                ),
            )
            if is_granted:
                await settle(sut.scheduler, blocker)
            await sut.advance_ms(1_000)
            await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
            await alive(sut)
            charges.append(await reaped(sut.scheduler))

        assert charges == [{"r0": 300}, {"r1": 300}]

    async def test_a_waiter_is_refunded(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("blocker", "large"))
        request = admit_request(
            "r",
            "large",
            budgets=(budget(1_000),),
            hold_micro_usd=300,
            rates=(per_minute(1, burst=1),),
            queue=PATIENT,
            deadline_ms=1_000,
        )
        waiting = await waiting_of(sut.scheduler, request)
        assert await budget_of(sut.scheduler) == (0, 300)
        await sut.advance_ms(1_000)

        assert await reaped(sut.scheduler) == {"r": 0}

        assert await budget_of(sut.scheduler) == (0, 0)
        assert await polled(sut.scheduler, waiting) is None
        await grant_of(sut.scheduler, admit_request("next", rates=request.rates))

    async def test_a_gateway_that_comes_back_pays_what_it_cost(self, sut):
        request, _ = await self.lost_call(sut, sent=True)

        settlement = await settle(sut.scheduler, request, 120, saved_micro_usd=9)

        assert settlement == Settlement(120, 9, first=True)
        assert await settle(sut.scheduler, request, 120) == replace(settlement, first=False)
        assert await budget_of(sut.scheduler) == (120, 0)
        assert await sut.scheduler.spend_today() == Spend(
            spent_micro_usd=120,
            saved_micro_usd=9,
            calls=1,
            calls_by_tier=(("small", 1),),
            lost_calls=1,
        )

    async def test_one_that_was_refunded_pays_what_it_cost_up_to_its_hold(self, sut):
        request, _ = await self.lost_call(sut, sent=False)

        assert await settle(sut.scheduler, request, 350) == Settlement(300, 50, first=True)

        assert await budget_of(sut.scheduler) == (300, 0)
        assert (await sut.scheduler.spend_today()).overrun_micro_usd == 50

    async def test_a_cancel_after_reap_changes_nothing(self, sut):
        request, _ = await self.lost_call(sut, sent=True)

        assert await cancel(sut.scheduler, request) == Settlement(300, 0, first=False)

        assert await budget_of(sut.scheduler) == (300, 0)

    async def test_a_late_settle_before_reap_is_the_only_one(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300, lease_ttl_ms=1_000)
        await keep(sut.scheduler, await grant_of(sut.scheduler, request), ttl_ms=1_000)
        await sut.advance_ms(1_000)

        assert (await settle(sut.scheduler, request, 100)).first

        assert await reaped(sut.scheduler) == {}
        assert await budget_of(sut.scheduler) == (100, 0)


class TestRebuild:
    async def test_an_epoch_begins_and_opens_after_the_grace(self, sut):
        begun = await sut.scheduler.rebuild([], grace_ms=500)
        assert begun.startswith("rebuilding|")
        await sut.advance_ms(499)
        assert await sut.scheduler.rebuild([], grace_ms=500) == begun
        await sut.advance_ms(1)

        opened = await sut.scheduler.rebuild([], grace_ms=500)

        assert opened == begun.replace("rebuilding", "open")
        assert await sut.scheduler.rebuild([], grace_ms=10**9) == opened
        assert (await sut.scheduler.renew("g", [], 1_000)).epoch == opened

    async def test_checked_calls_are_refused_until_it_is_open(self, sut):
        line = (budget(1_000),)
        checked = admit_request("r", budgets=line, hold_micro_usd=10, checked=True)
        refused = Refusal(RefusalReason.REBUILDING, 1_000)
        assert await refusal_of(sut.scheduler, checked) == refused
        await sut.scheduler.rebuild([(line[0], 5)], grace_ms=500)
        assert await refusal_of(sut.scheduler, checked) == refused
        assert await budget_of(sut.scheduler) == (5, 0)
        await grant_of(sut.scheduler, replace(checked, request_id="unchecked", checked=False))
        await sut.advance_ms(500)
        await sut.scheduler.rebuild([], grace_ms=500)

        other = replace(checked, request_id="r2", epoch_id="17")
        assert await refusal_of(sut.scheduler, other) == refused
        epoch_id = (await sut.scheduler.rebuild(())).partition("|")[2]
        await grant_of(sut.scheduler, replace(other, epoch_id=epoch_id))
        await grant_of(sut.scheduler, checked)

        assert await budget_of(sut.scheduler) == (5, 30)

    async def test_a_gateway_that_knows_another_epoch_is_refused(self, sut):
        """It has seen to its budgets, but before the data was lost."""
        epoch_id = (await sut.scheduler.rebuild([], grace_ms=0)).partition("|")[2]
        checked = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=10, checked=True)

        refused = await reason_of(sut.scheduler, replace(checked, epoch_id=f"{epoch_id}0"))

        assert refused == RefusalReason.REBUILDING
        await grant_of(sut.scheduler, replace(checked, epoch_id=epoch_id))

    async def test_a_call_that_runs_goes_on_while_budgets_are_rebuilt(self, sut):
        await sut.scheduler.rebuild([], grace_ms=0)
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=10, checked=True)
        grant = await grant_of(sut.scheduler, request)
        await sut.lose_everything()
        await alive(sut)
        await sut.scheduler.reregister(request, HeldLease(grant))

        await grant_of(sut.scheduler, replace(request, step=1))

    async def test_spent_is_raised_and_never_lowered(self, sut):
        request = admit_request("r", budgets=(budget(1_000),), hold_micro_usd=300)
        await grant_of(sut.scheduler, request)
        await settle(sut.scheduler, request, 200)
        await grant_of(sut.scheduler, replace(request, request_id="running"))

        for ledger, spent in ((150, 200), (200, 200), (250, 250), (0, 250)):
            await sut.scheduler.rebuild([(budget(1_000), ledger), (budget(9, "key:k1"), ledger)])
            assert await budget_of(sut.scheduler) == (spent, 300)

    async def test_many_gateways_rebuild_at_once(self, sut):
        ledger = [(budget(1_000), 400), (budget(1_000, "key:k1", "total"), 700)]

        epochs = await asyncio.gather(*(sut.scheduler.rebuild(ledger) for _ in range(20)))

        assert len(set(epochs)) == 1
        assert await budget_of(sut.scheduler) == (400, 0)
        assert await budget_of(sut.scheduler, "key:k1", "total") == (700, 0)

    async def test_a_rebuilt_window_has_its_time(self, sut):
        await sut.scheduler.rebuild([(budget(1_000, ttl_ms=5_000), 400)])
        await sut.advance_ms(4_999)
        assert await budget_of(sut.scheduler) == (400, 0)

        await sut.advance_ms(1)

        assert await budget_of(sut.scheduler) == (0, 0)


class TestDataLoss:
    LINE = budget(1_000, ttl_ms=60_000)

    async def test_from_loss_to_open(self, sut):
        """Two calls run, one has ended; the ledger knows what was spent."""
        requests = [
            admit_request(f"r{i}", budgets=(self.LINE,), hold_micro_usd=300, checked=True) for i in range(3)
        ]
        await sut.scheduler.rebuild([], grace_ms=0)
        grants = [await grant_of(sut.scheduler, request) for request in requests]
        await settle(sut.scheduler, requests[0], 250)
        await sut.advance_ms(100)

        await sut.lose_everything()
        await alive(sut)
        assert (await sut.scheduler.renew("g", [HeldLease(grants[1])], 1_000)).epoch == ""
        assert await sut.scheduler.settle(settle_request("r0", 250)) is None
        assert (await sut.scheduler.rebuild([(self.LINE, 250)])).startswith("rebuilding|")
        back = [
            await sut.scheduler.reregister(request, HeldLease(grant))
            for request, grant in zip(requests[1:], grants[1:], strict=True)
        ]
        assert await budget_of(sut.scheduler) == (250, 600)
        assert await load_of(sut.scheduler) == {"a": (2, 200)}
        next_one = replace(requests[0], request_id="next", hold_micro_usd=150)
        assert await reason_of(sut.scheduler, next_one) == RefusalReason.REBUILDING
        await sut.advance_ms(3_000)
        await alive(sut)
        assert (await sut.scheduler.rebuild([(self.LINE, 250)])).startswith("open|")

        await grant_of(sut.scheduler, next_one)
        for request, cost in zip(requests[1:], (100, 300), strict=True):
            await settle(sut.scheduler, request, cost)

        assert await keep(sut.scheduler, *back) == [False, False]
        assert await budget_of(sut.scheduler) == (650, 150)
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_a_hold_that_comes_back_has_the_time_of_its_window(self, sut):
        request = admit_request("r", budgets=(self.LINE,), hold_micro_usd=300)
        grant = await grant_of(sut.scheduler, request)
        await sut.lose_everything()
        await sut.scheduler.reregister(request, HeldLease(grant))
        assert await budget_of(sut.scheduler) == (0, 300)

        await sut.advance_ms(60_000)

        assert await budget_of(sut.scheduler) == (0, 0)

    async def test_what_comes_back_can_be_lost_again(self, sut):
        request = admit_request("r", budgets=(self.LINE,), hold_micro_usd=300, lease_ttl_ms=1_000, note="n")
        grant = await grant_of(sut.scheduler, request)
        await sut.lose_everything()
        await sut.scheduler.reregister(request, HeldLease(grant, dispatched=True))
        await sut.advance_ms(1_000)

        (lost,) = await sut.scheduler.reap(["small"])

        assert (lost.request_id, lost.charge_micro_usd, lost.note) == ("r", 300, "n")
        assert await budget_of(sut.scheduler) == (300, 0)

    async def test_a_lost_waiter_is_unknown(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("blocker", "large"))
        request = admit_request("r", "large", queue=PATIENT)
        waiting = await waiting_of(sut.scheduler, request)
        await sut.lose_everything()

        assert await polled(sut.scheduler, waiting) is None
        assert await sut.scheduler.settle(settle_request("r", cancelled=True)) is None
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, request)


async def test_calls_on_both_sides_of_a_windows_end_are_each_spent_once(sut):
    """LiteLLM #34733: concurrent resets of a window overwrote spend."""
    await sut.scheduler.heartbeat(ready_replica("a", max_concurrency=99))
    windows = [f"day:2026112{number % 2 + 1}" for number in range(50)]

    async def call(number: int) -> None:
        line = BudgetLine("key:a", windows[number], 10**6)
        request_id = f"r{number}"
        await grant_of(sut.scheduler, admit_request(request_id, budgets=(line,), hold_micro_usd=100))
        await sut.scheduler.settle(
            SettleRequest(request_id, ("small",), "small", number, 0, budgets=(("key:a", windows[number]),))
        )

    await asyncio.gather(*(call(number) for number in range(50)))

    states = await sut.scheduler.budget_states([("key:a", "day:20261121"), ("key:a", "day:20261122")])
    assert [state.spent_micro_usd for state in states] == [sum(range(0, 50, 2)), sum(range(1, 50, 2))]
    assert [state.held_micro_usd for state in states] == [0, 0]
