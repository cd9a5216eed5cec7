"""Who waits, for how long, and who is served next: the same scenarios in memory and on a real Valkey."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from cluster.types import (
    BudgetLine,
    Grant,
    HeldLease,
    Placement,
    PriorityClass,
    QueueTerms,
    RateCharge,
    Refusal,
    RefusalReason,
    ReplicaPhase,
    Waiting,
)
from tests.builders import NOON_MS, PATIENT, admit_request, candidate, ready_replica
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
    waiters_of,
    waiting_of,
)

INTERACTIVE, NORMAL, BATCH = PriorityClass


def waiter(request_id, **changes):
    return admit_request(request_id, **({"queue": PATIENT, "gateway": "g1"} | changes))


@pytest.fixture
async def sut(scheduler):
    """One slot, which is taken by `blocker`."""
    await scheduler.scheduler.heartbeat(ready_replica("a", max_concurrency=1))
    await grant_of(scheduler.scheduler, admit_request("blocker"))
    return scheduler


BLOCKER = admit_request("blocker")


async def alive(sut, **changes):
    await sut.scheduler.heartbeat(ready_replica("a", **({"max_concurrency": 1} | changes)))


async def served(sut, requests):
    """In which order the waiters run, when each ends as soon as the next could begin."""
    order = []
    await settle(sut.scheduler, BLOCKER)
    by_id = {request.request_id: request for request in requests}
    for _ in range(len(requests) + 1):
        granted = [each[1] for each in await sut.notices()]
        order += granted
        for request_id in granted:
            await settle(sut.scheduler, by_id[request_id])
    assert sorted(order) == sorted(by_id)
    return order


class TestWaiting:
    async def test_a_place_in_the_queue(self, sut):
        first = await sut.scheduler.admit(waiter("r0"))
        second = await sut.scheduler.admit(waiter("r1"))

        # The neutral placement predicts a second per call and slot.
        assert first == Waiting("r0", 0, candidate(), position=0, predicted_wait_ms=1_000)
        assert second == Waiting("r1", 0, candidate(), position=1, predicted_wait_ms=2_000)
        assert (await sut.scheduler.pool_load("small")).waiting == (0, 2, 0)
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_a_freed_slot_is_granted_in_the_call_that_frees_it(self, sut):
        waiting = await waiting_of(sut.scheduler, waiter("r0", tokens=70))

        await settle(sut.scheduler, BLOCKER)

        assert await load_of(sut.scheduler) == {"a": (1, 70)}
        assert (await sut.scheduler.pool_load("small")).waiting == (0, 0, 0)
        (notice,) = await sut.notices()
        grant = await polled(sut.scheduler, waiting)
        assert notice == ("g1", "r0", 0, grant.fence, "a")
        assert grant == Grant("r0", 0, candidate(), "a", "http://a", grant.fence, NOON_MS + 60_000)
        assert await keep(sut.scheduler, grant) == [True]

    async def test_a_cancelled_call_passes_its_slot_on_as_well(self, sut):
        waiting = await waiting_of(sut.scheduler, waiter("r0"))

        await cancel(sut.scheduler, BLOCKER)

        assert isinstance(await polled(sut.scheduler, waiting), Grant)

    async def test_a_replica_that_reports_takes_waiters(self, sut):
        waiting = [await waiting_of(sut.scheduler, waiter(f"r{i}")) for i in range(3)]

        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=2))

        answers = await sut.scheduler.poll(waiting, 1_000)
        assert [getattr(answer, "replica_id", None) for answer in answers] == ["b", "b", None]

    async def test_so_does_one_whose_cap_is_raised(self, sut):
        waiting = await waiting_of(sut.scheduler, waiter("r0"))

        await alive(sut, max_concurrency=2)

        assert isinstance(await polled(sut.scheduler, waiting), Grant)

    async def test_and_one_that_no_longer_drains(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", phase=ReplicaPhase.DRAINING))
        waiting = await waiting_of(sut.scheduler, waiter("r0"))
        await sut.scheduler.heartbeat(ready_replica("b", phase=ReplicaPhase.DRAINING))
        assert isinstance(await polled(sut.scheduler, waiting), Waiting)

        await sut.scheduler.heartbeat(ready_replica("b"))

        assert isinstance(await polled(sut.scheduler, waiting), Grant)

    async def test_so_does_the_slot_of_a_lost_call(self, sut):
        await alive(sut, max_concurrency=2)
        await grant_of(sut.scheduler, admit_request("lost", lease_ttl_ms=1_000))
        waiting = await waiting_of(sut.scheduler, waiter("r0"))
        await sut.advance_ms(1_000)

        await reaped(sut.scheduler)

        assert isinstance(await polled(sut.scheduler, waiting), Grant)

    async def test_newcomers_do_not_overtake(self, sut):
        """There is room for a small call, but a large one waits before it."""
        await alive(sut, max_concurrency=9, max_outstanding_tokens=200)
        large = await waiting_of(sut.scheduler, waiter("large", tokens=150))

        small = await waiting_of(sut.scheduler, waiter("small", tokens=100))
        may_not_wait = await reason_of(sut.scheduler, admit_request("r", tokens=100))

        assert may_not_wait == RefusalReason.CAPACITY
        await settle(sut.scheduler, BLOCKER)
        assert isinstance(await polled(sut.scheduler, large), Grant)
        assert isinstance(await polled(sut.scheduler, small), Waiting)

    async def test_a_large_waiter_is_not_starved_by_small_ones(self, sut):
        """It needs the whole replica. Small calls of ever new tenants pass it only while they are due
        earlier: four of 50 tokens before one of 200."""
        await settle(sut.scheduler, BLOCKER)
        await alive(sut, max_concurrency=9, max_outstanding_tokens=200)
        running = [admit_request(f"s{i}", tokens=50) for i in range(4)]
        for request in running:
            await grant_of(sut.scheduler, request)
        small = [waiter(f"w{i}", tokens=50, tenant=f"t{i}") for i in range(20)]
        by_id = {request.request_id: request for request in small}
        await waiting_of(sut.scheduler, waiter("large", tokens=200))

        granted = []
        for newcomer in small:
            await sut.scheduler.admit(newcomer)
            if running:
                await settle(sut.scheduler, running.pop(0))
            names = [each[1] for each in await sut.notices()]
            granted += names
            running += [by_id[name] for name in names if name in by_id]

        assert granted.index("large") <= 4

    async def test_a_newcomer_that_is_more_urgent_runs_at_once_where_it_fits(self, sut):
        await alive(sut, max_concurrency=9, max_outstanding_tokens=200)
        await waiting_of(sut.scheduler, waiter("large", tokens=150))

        grant = await grant_of(sut.scheduler, waiter("urgent", tokens=100, priority=INTERACTIVE))

        assert grant.replica_id == "a"
        assert [each[1] for each in await sut.notices()] == ["urgent"]
        assert (await sut.scheduler.pool_load("small")).waiting == (0, 1, 0)
        assert await grant_of(sut.scheduler, waiter("urgent", tokens=100, priority=INTERACTIVE)) == grant

    async def test_the_same_step_again(self, sut):
        request = waiter("r0")
        waiting = await waiting_of(sut.scheduler, request)
        await waiting_of(sut.scheduler, waiter("r1"))

        assert await sut.scheduler.admit(request) == replace(waiting, predicted_wait_ms=0)
        assert await waiters_of(sut.scheduler) == 2
        await settle(sut.scheduler, BLOCKER)
        grant = await grant_of(sut.scheduler, request)
        assert grant == await polled(sut.scheduler, waiting)
        await settle(sut.scheduler, request)
        assert await reason_of(sut.scheduler, request) == RefusalReason.ENDED

    async def test_the_pool_with_the_shorter_wait_is_joined(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", "large", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("other", "large"))
        for i in range(2):
            await waiting_of(sut.scheduler, waiter(f"r{i}"))

        waiting = await waiting_of(
            sut.scheduler,
            waiter("r", candidates=(candidate("small"), candidate("large")), spill=True),
        )

        assert waiting.candidate.pool == "large"
        first_tier = await waiting_of(
            sut.scheduler, waiter("s", candidates=(candidate("small"), candidate("large")))
        )
        assert first_tier.candidate.pool == "small"

    async def test_spill_passes_a_pool_where_others_wait(self, sut):
        await alive(sut, max_concurrency=9, max_outstanding_tokens=150)
        await waiting_of(sut.scheduler, waiter("large", tokens=100))
        await sut.scheduler.heartbeat(ready_replica("b", "large"))

        grant = await grant_of(
            sut.scheduler,
            waiter("r", tokens=10, candidates=(candidate("small"), candidate("large")), spill=True),
        )

        assert grant.replica_id == "b"

    async def test_the_second_candidate_of_a_ticket_comes_back_with_the_grant(self, sut):
        options = (candidate("gone", pool="gone"), candidate("small", adapter="legal@1"))
        waiting = await waiting_of(sut.scheduler, waiter("r", candidates=options))
        assert waiting.candidate == options[1]

        await settle(sut.scheduler, BLOCKER)

        assert (await polled(sut.scheduler, waiting)).candidate == options[1]
        assert (await grant_of(sut.scheduler, waiter("r", candidates=options))).candidate == options[1]

    async def test_a_waiter_gets_a_replica_with_its_adapter(self, sut):
        for replica, adapters in (("b", ()), ("c", (("legal@1", "loaded"),)), ("d", ())):
            state = ready_replica(replica, max_concurrency=1, adapters=adapters)
            await sut.scheduler.heartbeat(state)
            await grant_of(sut.scheduler, admit_request(f"on-{replica}"))
        await waiting_of(
            sut.scheduler,
            waiter(
                "r",
                candidates=(candidate(adapter="legal@1"),),
                placements=(Placement(cold_nano_usd=10**6),),
                tokens=300,
            ),
        )
        await sut.scheduler.heartbeat(
            ready_replica("c", max_concurrency=2, adapters=(("legal@1", "loaded"),))
        )

        assert [each[4] for each in await sut.notices()] == ["c"]

    async def test_a_left_out_replica_is_not_granted_from_the_queue(self, sut):
        waiting = await waiting_of(sut.scheduler, waiter("r0"))
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=1))
        assert (await polled(sut.scheduler, waiting)).replica_id == "b"
        picky = await waiting_of(sut.scheduler, waiter("r1", exclude_replicas=("a",)))

        await settle(sut.scheduler, BLOCKER)
        assert isinstance(await polled(sut.scheduler, picky), Waiting)

        await settle(sut.scheduler, waiter("r0"))
        assert (await polled(sut.scheduler, picky)).replica_id == "b"

    async def test_a_waiter_whose_replicas_are_gone_does_not_block_the_others(self, sut):
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=1))
        await grant_of(sut.scheduler, admit_request("on-b"))
        picky = await waiting_of(sut.scheduler, waiter("picky", exclude_replicas=("a",)))
        other = await waiting_of(sut.scheduler, waiter("other"))
        await sut.scheduler.deregister(ready_replica("b"))

        await settle(sut.scheduler, BLOCKER)

        assert isinstance(await polled(sut.scheduler, other), Grant)
        assert isinstance(await polled(sut.scheduler, picky), Waiting)
        await sut.scheduler.heartbeat(ready_replica("b", max_concurrency=2))
        assert (await polled(sut.scheduler, picky)).replica_id == "b"

    async def test_grants_in_one_call_are_bounded_and_reap_goes_on(self, sut):
        waiting = [await waiting_of(sut.scheduler, waiter(f"r{i}")) for i in range(20)]

        async def granted():
            answers = await sut.scheduler.poll(waiting, 1_000)
            return sum(isinstance(answer, Grant) for answer in answers)

        await alive(sut, max_concurrency=100)
        assert await granted() == 16
        await reaped(sut.scheduler)
        assert await granted() == 20

    async def test_hundred_at_once_each_gets_its_turn(self, sut):
        requests = [waiter(f"r{i}") for i in range(100)]
        answers = await asyncio.gather(*(sut.scheduler.admit(request) for request in requests))
        assert all(isinstance(answer, Waiting) for answer in answers)

        order = await served(sut, requests)

        assert len(set(order)) == 100
        assert await load_of(sut.scheduler) == {"a": (0, 0)}


class TestOrder:
    async def test_classes_are_strict(self, sut):
        requests = [
            waiter(f"{priority}{i}", priority=priority)
            for i in range(2)
            for priority in (BATCH, NORMAL, INTERACTIVE)
        ]
        for request in requests:
            await waiting_of(sut.scheduler, request)
        assert (await sut.scheduler.pool_load("small")).waiting == (2, 2, 2)

        order = await served(sut, requests)

        assert order == ["interactive0", "interactive1", "normal0", "normal1", "batch0", "batch1"]

    async def test_tenants_take_turns_by_tokens(self, sut):
        """One tenant was first with its whole backlog; each call of the other costs as much as two of it."""
        many = [waiter(f"small{i}", tenant="many", tokens=100) for i in range(8)]
        few = [waiter(f"large{i}", tenant="few", tokens=200) for i in range(4)]
        for request in (*many, *few):
            await waiting_of(sut.scheduler, request)

        order = await served(sut, [*many, *few])

        for half in (order[:6], order[6:]):
            assert Counter(name[:5] for name in half) == {"small": 4, "large": 2}

    async def test_weights_share_unequally(self, sut):
        heavy = [waiter(f"heavy{i}", tenant="heavy", weight=3) for i in range(9)]
        light = [waiter(f"light{i}", tenant="light", weight=1) for i in range(9)]
        for request in (*light, *heavy):
            await waiting_of(sut.scheduler, request)

        order = await served(sut, [*heavy, *light])

        assert Counter(name[:5] for name in order[:8]) == {"heavy": 6, "light": 2}

    async def test_a_tenant_that_was_idle_has_no_credit(self, sut):
        """A late starter takes turns from now on; it does not catch up."""
        busy = [waiter(f"busy{i}", tenant="busy") for i in range(8)]
        for request in busy:
            await waiting_of(sut.scheduler, request)
        await settle(sut.scheduler, BLOCKER)
        for request in busy[:4]:
            await settle(sut.scheduler, request)
        await sut.notices()
        late = [waiter(f"late{i}", tenant="late") for i in range(4)]
        for request in late:
            await waiting_of(sut.scheduler, request)

        order = []
        by_id = {request.request_id: request for request in (*busy, *late)}
        ending = [busy[4].request_id]
        while ending:
            for request_id in ending:
                await settle(sut.scheduler, by_id[request_id])
            ending = [each[1] for each in await sut.notices()]
            order += ending

        assert [name[:4] for name in order[:4]] in (["late", "busy"] * 2, ["busy", "late"] * 2)

    async def test_who_leaves_unserved_costs_its_tenant_nothing(self, sut):
        """Its later calls take the turns that those would have had."""
        ended = [waiter(f"gone{i}", tenant="hasty", tokens=900) for i in range(4)]
        stays = [waiter(f"hasty{i}", tenant="hasty") for i in range(4)]
        calm = [waiter(f"calm{i}", tenant="calm") for i in range(4)]
        for request in (*ended[:2], *stays[:2], *ended[2:], *stays[2:], *calm):
            await waiting_of(sut.scheduler, request)
        for request in ended:
            await cancel(sut.scheduler, request)

        order = await served(sut, [*stays, *calm])

        for first, second in zip(order[::2], order[1::2], strict=True):
            assert {first[:4], second[:4]} == {"hast", "calm"}

    async def test_nor_does_one_whose_deadline_passes(self, sut):
        hasty = [waiter(f"gone{i}", tenant="hasty", deadline_ms=9_000) for i in range(9)]
        late = [waiter(f"hasty{i}", tenant="hasty") for i in range(2)]
        calm = [waiter(f"calm{i}", tenant="calm") for i in range(2)]
        for request in (*hasty, *late, *calm):
            await waiting_of(sut.scheduler, request)
        await sut.advance_ms(9_000)
        await alive(sut)

        order = await served(sut, [*late, *calm])

        assert Counter(name[:4] for name in order[:2]) == {"hast": 1, "calm": 1}

    async def test_each_tenants_calls_keep_their_order(self, sut):
        """Whatever the names of tenants are."""
        tenants = ("a", "a|", "a|1", "1|a", "ä", "a}", "")
        requests = [
            waiter(f"{number}.{i}", tenant=tenant) for i in range(11) for number, tenant in enumerate(tenants)
        ]
        for request in requests:
            await waiting_of(sut.scheduler, request)

        order = await served(sut, requests)

        assert order[:: len(tenants)] == [f"{order[0][0]}.{i}" for i in range(11)]
        for i in range(11):
            turn = order[i * len(tenants) : (i + 1) * len(tenants)]
            assert sorted(turn) == [f"{number}.{i}" for number in range(len(tenants))]

    async def test_an_empty_queue_forgets_who_was_served(self, sut):
        greedy = [waiter(f"greedy{i}", tenant="greedy", tokens=1_000) for i in range(3)]
        for request in greedy:
            await waiting_of(sut.scheduler, request)
        await served(sut, greedy)
        await grant_of(sut.scheduler, admit_request("again"))
        await waiting_of(sut.scheduler, waiter("first", tenant="greedy"))
        second = await waiting_of(sut.scheduler, waiter("second", tenant="modest"))

        assert second.position == 1

    async def test_so_does_one_that_was_left_by_cancelling(self, sut):
        await waiting_of(sut.scheduler, waiter("greedy", tenant="greedy", tokens=1_000))
        await cancel(sut.scheduler, waiter("greedy"))
        await waiting_of(sut.scheduler, waiter("first", tenant="greedy"))

        assert (await waiting_of(sut.scheduler, waiter("second", tenant="modest"))).position == 1

    async def test_ageing_lifts_a_batch_call(self, sut):
        ages = replace(PATIENT, ageing_ms=1_000)
        old = waiter("old", priority=BATCH, queue=ages)
        await waiting_of(sut.scheduler, old)
        await sut.advance_ms(1_999)
        urgent = [waiter(f"urgent{i}", priority=INTERACTIVE, queue=ages) for i in range(2)]
        await waiting_of(sut.scheduler, urgent[0])
        await sut.advance_ms(1)
        await waiting_of(sut.scheduler, urgent[1])
        await alive(sut)

        # As urgent as they are by now, and longer here than both.
        assert await served(sut, [old, *urgent]) == ["old", "urgent0", "urgent1"]

    async def test_not_before_its_time(self, sut):
        ages = replace(PATIENT, ageing_ms=1_000)
        old = waiter("old", priority=BATCH, queue=ages)
        await waiting_of(sut.scheduler, old)
        await sut.advance_ms(1_999)
        urgent = waiter("urgent", priority=INTERACTIVE, queue=ages)
        normal = waiter("normal", priority=NORMAL, queue=ages)
        await waiting_of(sut.scheduler, urgent)
        await waiting_of(sut.scheduler, normal)
        await alive(sut)

        assert await served(sut, [old, normal, urgent]) == ["urgent", "old", "normal"]


class TestEndOfTheWait:
    TERMS = QueueTerms(longest_queue=9, longest_wait_ms=60_000, ticket_ttl_ms=1_000)

    def rich(self, request_id="r", **changes):
        return waiter(
            request_id,
            budgets=(BudgetLine("tenant:acme", "20261122", 1_000),),
            hold_micro_usd=300,
            rates=(RateCharge("requests:k1", 10**9, 10**9),),
            queue=self.TERMS,
            **changes,
        )

    async def test_nobody_starts_after_its_deadline(self, sut):
        waiting = await waiting_of(sut.scheduler, self.rich(deadline_ms=1_500))
        await sut.advance_ms(999)
        assert isinstance(await polled(sut.scheduler, waiting), Waiting)
        await sut.advance_ms(501)
        await alive(sut)

        await settle(sut.scheduler, BLOCKER)

        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await polled(sut.scheduler, waiting) is None
        assert await sut.notices() == []
        assert await budget_of(sut.scheduler) == (0, 300)
        assert (await cancel(sut.scheduler, self.rich())).first
        assert await budget_of(sut.scheduler) == (0, 0)

    async def test_nor_when_its_gateway_no_longer_asks(self, sut):
        silent = await waiting_of(sut.scheduler, self.rich("silent"))
        await sut.advance_ms(500)
        request = waiter("asking", queue=self.TERMS)
        asking = await waiting_of(sut.scheduler, request)
        assert isinstance(await polled(sut.scheduler, asking, 1_000), Waiting)
        await sut.advance_ms(500)

        await settle(sut.scheduler, BLOCKER)

        assert isinstance(await polled(sut.scheduler, asking), Grant)
        assert await polled(sut.scheduler, silent) is None
        assert await reaped(sut.scheduler) == {"silent": 0}
        assert await budget_of(sut.scheduler) == (0, 0)
        await settle(sut.scheduler, request)
        await grant_of(sut.scheduler, self.rich("next"))

    async def test_reap_ends_the_waiters_of_a_dead_gateway(self, sut):
        waiting = await waiting_of(sut.scheduler, self.rich())
        assert await reaped(sut.scheduler) == {}
        await sut.advance_ms(1_000)

        assert await reaped(sut.scheduler) == {"r": 0}

        assert await reaped(sut.scheduler) == {}
        assert await waiters_of(sut.scheduler) == 0
        assert await budget_of(sut.scheduler) == (0, 0)
        assert await polled(sut.scheduler, waiting) is None
        assert await reason_of(sut.scheduler, self.rich()) == RefusalReason.ENDED
        assert not (await cancel(sut.scheduler, self.rich())).first

    async def test_asking_again_keeps_a_place_until_the_deadline(self, sut):
        waiting = await waiting_of(sut.scheduler, self.rich(deadline_ms=2_500))
        for _ in range(4):
            await sut.advance_ms(600)
            assert await polled(sut.scheduler, waiting, 1_000) == replace(waiting, predicted_wait_ms=0)
            assert await reaped(sut.scheduler) == {}
        await sut.advance_ms(100)

        assert await polled(sut.scheduler, waiting, 1_000) is None
        assert await reaped(sut.scheduler) == {"r": 0}

    async def test_a_place_is_never_shortened(self, sut):
        waiting = await waiting_of(sut.scheduler, self.rich())
        await polled(sut.scheduler, waiting, 1)
        await sut.advance_ms(999)

        assert await reaped(sut.scheduler) == {}

    async def test_who_no_longer_waits_does_not_stand_in_the_way(self, sut):
        """The head of the queue is gone, and nobody has reaped it."""
        await waiting_of(sut.scheduler, self.rich("gone"))
        await sut.advance_ms(1_000)
        await alive(sut, max_concurrency=2)

        await grant_of(sut.scheduler, admit_request("r"))

    async def test_a_grant_that_nobody_picks_up_ends_with_its_lease(self, sut):
        await waiting_of(sut.scheduler, self.rich(lease_ttl_ms=500))
        await settle(sut.scheduler, BLOCKER)
        assert await load_of(sut.scheduler) == {"a": (1, 100)}
        await sut.advance_ms(500)

        assert await reaped(sut.scheduler) == {"r": 0}

        assert await load_of(sut.scheduler) == {"a": (0, 0)}
        assert await budget_of(sut.scheduler) == (0, 0)
        await grant_of(sut.scheduler, replace(self.rich("next"), lease_ttl_ms=60_000))

    async def test_cancelling_gives_rate_and_money_back(self, sut):
        waiting = await waiting_of(sut.scheduler, self.rich())
        behind = await waiting_of(sut.scheduler, waiter("behind"))

        assert (await cancel(sut.scheduler, self.rich())).first

        assert await polled(sut.scheduler, waiting) is None
        assert await budget_of(sut.scheduler) == (0, 0)
        assert (await polled(sut.scheduler, behind)).position == 0
        assert isinstance(await sut.scheduler.admit(self.rich("next")), Waiting)

    async def test_cancelling_the_first_lets_a_smaller_one_in(self, sut):
        await alive(sut, max_concurrency=9, max_outstanding_tokens=200)
        large = waiter("large", tokens=150)
        await waiting_of(sut.scheduler, large)
        small = await waiting_of(sut.scheduler, waiter("small", tokens=100))

        await cancel(sut.scheduler, large)

        assert isinstance(await polled(sut.scheduler, small), Grant)

    async def test_so_does_its_end_by_reap(self, sut):
        await alive(sut, max_concurrency=9, max_outstanding_tokens=200)
        await waiting_of(sut.scheduler, waiter("large", tokens=150, deadline_ms=1_000))
        small = await waiting_of(sut.scheduler, waiter("small", tokens=100))
        await sut.advance_ms(1_000)

        assert await reaped(sut.scheduler) == {"large": 0}

        assert isinstance(await polled(sut.scheduler, small), Grant)

    async def test_cancelling_a_waiter_that_was_granted_meanwhile_passes_its_slot_on(self, sut):
        first, second = self.rich("first"), waiter("second")
        await waiting_of(sut.scheduler, first)
        behind = await waiting_of(sut.scheduler, second)
        await settle(sut.scheduler, BLOCKER)

        assert (await cancel(sut.scheduler, first)).first

        assert isinstance(await polled(sut.scheduler, behind), Grant)
        assert await budget_of(sut.scheduler) == (0, 0)
        assert [each[1] for each in await sut.notices()] == ["first", "second"]
        assert await load_of(sut.scheduler) == {"a": (1, 100)}

    async def test_a_call_from_the_queue_is_settled_like_any_other(self, sut):
        request = self.rich()
        waiting = await waiting_of(sut.scheduler, request)
        await settle(sut.scheduler, BLOCKER)
        grant = await polled(sut.scheduler, waiting)
        assert (await sut.scheduler.renew("g", [HeldLease(grant)], 60_000)).kept == (True,)

        settlement = await settle(sut.scheduler, request, 120)

        assert settlement.first
        assert await budget_of(sut.scheduler) == (120, 0)
        assert await load_of(sut.scheduler) == {"a": (0, 0)}

    async def test_nothing_to_poll(self, sut):
        assert await sut.scheduler.poll([], 1_000) == ()
        assert await polled(sut.scheduler, Waiting("never", 0, candidate(), 0, 0)) is None


class TestRefusal:
    async def test_a_full_queue(self, sut):
        short = replace(PATIENT, longest_queue=2)
        for i in range(2):
            await waiting_of(sut.scheduler, waiter(f"r{i}", queue=short))

        refusal = await refusal_of(sut.scheduler, waiter("r2", queue=short))

        assert refusal == Refusal(RefusalReason.QUEUE_FULL, 3_000)

    async def test_a_wait_that_would_be_too_long(self, sut):
        terms = replace(PATIENT, longest_wait_ms=2_500)
        for i in range(2):
            await waiting_of(sut.scheduler, waiter(f"r{i}", queue=terms))

        assert await refusal_of(sut.scheduler, waiter("r2", queue=terms)) == Refusal(RefusalReason.WAIT, 500)
        urgent = await waiting_of(sut.scheduler, waiter("r3", queue=terms, priority=INTERACTIVE))
        assert (urgent.position, urgent.predicted_wait_ms) == (0, 1_000)

    async def test_or_end_after_the_deadline(self, sut):
        refusal = await refusal_of(sut.scheduler, waiter("r", deadline_ms=900))

        assert refusal == Refusal(RefusalReason.WAIT, 100)

    async def test_the_prediction_learns_from_calls_that_ended(self, sut):
        """An eighth of what is new; the first is taken as it is."""
        terms = {"placements": (Placement(service_us=99_000_000, slots=3),)}
        assert (await waiting_of(sut.scheduler, waiter("r0", **terms))).predicted_wait_ms == 33_000
        await sut.advance_ms(2_000)
        await settle(sut.scheduler, BLOCKER)
        assert (await waiting_of(sut.scheduler, waiter("r1", **terms))).predicted_wait_ms == 667
        await sut.advance_ms(400)
        await settle(sut.scheduler, waiter("r0"))

        waiting = await waiting_of(sut.scheduler, waiter("r2"))

        assert waiting.predicted_wait_ms == 2_000 - (2_000 - 400) // 8

    async def test_the_prediction_knows_the_pace_of_its_class(self, sut):
        """More urgent calls take three slots of four: batch calls wait four times as long as by the slots."""
        for i in range(4):
            await waiting_of(sut.scheduler, waiter(f"batch{i}", priority=BATCH))
        running = BLOCKER
        for i in range(60):
            urgent = waiter(f"urgent{i}", priority=INTERACTIVE)
            if i % 4:
                await waiting_of(sut.scheduler, urgent)
            else:
                await waiting_of(sut.scheduler, waiter(f"more{i}", priority=BATCH))
            await sut.advance_ms(1_000)
            await alive(sut)
            await settle(sut.scheduler, running)
            ((_, granted, *_),) = await sut.notices()
            running = waiter(granted)

        waiting = await waiting_of(sut.scheduler, waiter("r", priority=BATCH))

        assert waiting.position == 4
        assert waiting.predicted_wait_ms == pytest.approx(5 * 4_000, rel=0.15)

    async def test_the_first_of_a_class_is_not_kept_out_by_its_pace(self, sut):
        """Else nobody would find out that it has become faster."""
        first = await waiting_of(sut.scheduler, waiter("r0", priority=BATCH))
        await waiting_of(sut.scheduler, waiter("urgent", priority=INTERACTIVE))
        for _ in range(40):
            await sut.advance_ms(1_000)
            await alive(sut)
            await polled(sut.scheduler, first, 60_000)
        second = await waiting_of(sut.scheduler, waiter("r1", priority=BATCH))
        await cancel(sut.scheduler, waiter("r0"))
        await cancel(sut.scheduler, waiter("r1"))

        third = await waiting_of(sut.scheduler, waiter("r2", priority=BATCH))

        assert second.predicted_wait_ms > 30_000
        assert (third.position, third.predicted_wait_ms) == (1, 2_000)

    async def test_more_replicas_promise_a_shorter_wait(self, sut):
        for replica in "bc":
            await sut.scheduler.heartbeat(ready_replica(replica, max_concurrency=1))
            await grant_of(sut.scheduler, admit_request(f"on-{replica}"))

        waiting = await waiting_of(sut.scheduler, waiter("r"))

        assert waiting.predicted_wait_ms == 334

    async def test_a_refusal_takes_nothing(self, sut):
        line, rate = BudgetLine("tenant:acme", "20261122", 1_000), RateCharge("requests:k1", 10**6, 10**6)
        request = waiter(
            "r", budgets=(line,), hold_micro_usd=300, rates=(rate,), queue=replace(PATIENT, longest_queue=0)
        )

        assert await reason_of(sut.scheduler, request) == RefusalReason.QUEUE_FULL

        assert await budget_of(sut.scheduler) == (0, 0)
        assert await waiters_of(sut.scheduler) == 0
        await waiting_of(sut.scheduler, replace(request, queue=PATIENT))

    async def test_nobody_waits_for_a_pool_without_replicas(self, sut):
        assert await reason_of(sut.scheduler, waiter("r", exclude_replicas=("a",))) == (
            RefusalReason.NO_REPLICA
        )
