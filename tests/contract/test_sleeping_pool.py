"""A pool that may have no replica: calls wait for the first one. The same in memory and on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.scheduler.pool_demand import read_demand, said_targets, say_targets
from cluster.types import Grant, Placement, QueueTerms, RefusalReason, ReplicaPhase, Waiting
from tests.builders import PATIENT, admit_request, ready_replica
from tests.conftest import patient_client
from tests.gateways import GatewayUnderTest, running_gateway
from tests.scheduler_calls import grant_of, polled, reaped, reason_of, settle, waiters_of, waiting_of

WAKE_MS = 20_000
WAKES = Placement(wake_ms=WAKE_MS)
HURRIED = QueueTerms(longest_queue=10, longest_wait_ms=10_000)
ASLEEP = "small"


def call(request_id="r", *tiers, **changes):
    """To a small tier that sleeps, with the large one behind it."""
    tiers = tiers or ("small", "large")
    placements = (WAKES, *(Placement() for _ in tiers[1:]))
    return admit_request(request_id, *tiers, placements=placements, **({"queue": PATIENT} | changes))


@pytest.fixture
async def sut(scheduler):
    """Nothing in the small pool, a free replica in the large one."""
    await scheduler.scheduler.heartbeat(ready_replica("l", "large"))
    return scheduler


async def test_a_call_waits_for_the_first_replica_and_is_granted_by_its_heartbeat(sut):
    waiting = await waiting_of(sut.scheduler, call())
    assert (waiting.candidate.pool, waiting.position) == (ASLEEP, 0)
    assert waiting.predicted_wait_ms == WAKE_MS + 1_000, "to wake, and a call's time as one that waits has"

    await sut.scheduler.heartbeat(ready_replica("s", phase=ReplicaPhase.LOADING))
    assert isinstance(await polled(sut.scheduler, waiting), Waiting)
    await sut.scheduler.heartbeat(ready_replica("s"))

    grant = await polled(sut.scheduler, waiting)
    assert isinstance(grant, Grant)
    assert grant.replica_id == "s"


async def test_so_does_one_behind_a_replica_that_drains(sut):
    await sut.scheduler.heartbeat(ready_replica("s", phase=ReplicaPhase.DRAINING))

    assert (await waiting_of(sut.scheduler, call())).candidate.pool == ASLEEP


async def test_and_one_behind_a_replica_that_has_died(sut):
    await sut.scheduler.heartbeat(ready_replica("s"))
    await sut.advance_ms(3_000)
    await sut.scheduler.heartbeat(ready_replica("l", "large"))

    assert (await waiting_of(sut.scheduler, call())).candidate.pool == ASLEEP


@pytest.mark.parametrize("terms", [{"queue": HURRIED}, {"deadline_ms": 10_000}, {"queue": None}])
async def test_who_cannot_wait_that_long_goes_up(sut, terms):
    assert (await grant_of(sut.scheduler, call(**terms))).candidate.pool == "large"


@pytest.mark.parametrize("terms", [{"queue": HURRIED}, {"deadline_ms": 10_000}, {"queue": None}])
async def test_or_is_refused_where_nothing_is_above(sut, terms):
    assert await reason_of(sut.scheduler, call("r", "small", **terms)) == RefusalReason.NO_REPLICA


async def test_so_does_one_that_could_wait_for_the_replica_but_not_for_its_turn(sut):
    terms = QueueTerms(longest_queue=10, longest_wait_ms=WAKE_MS + 1_000)
    await waiting_of(sut.scheduler, call("r0", queue=terms))

    assert (await grant_of(sut.scheduler, call("r1", queue=terms))).candidate.pool == "large"


async def test_a_pool_that_cannot_wake_is_passed_over(sut):
    request = replace(call(), placements=())

    assert (await grant_of(sut.scheduler, request)).candidate.pool == "large"


async def test_a_call_that_failed_on_the_only_replica_does_not_wait_for_another(sut):
    await sut.scheduler.heartbeat(ready_replica("s"))
    request = call("r", "small")
    await grant_of(sut.scheduler, request)

    again = replace(request, step=1, exclude_replicas=("s",))

    assert await reason_of(sut.scheduler, again) == RefusalReason.NO_REPLICA


async def test_with_spill_a_free_slot_is_better_than_a_wait(sut):
    assert (await grant_of(sut.scheduler, call(spill=True))).candidate.pool == "large"


async def test_the_wait_ends_when_it_was_to_end_though_the_pool_never_wakes(sut):
    """The deadline of the call may be far off: nobody would know that the pool cannot start."""
    patient = QueueTerms(longest_queue=10, longest_wait_ms=30_000, ticket_ttl_ms=3_600_000)
    waiting = await waiting_of(sut.scheduler, call(queue=patient, deadline_ms=600_000))
    await sut.advance_ms(29_999)
    assert isinstance(await polled(sut.scheduler, waiting), Waiting)

    await sut.advance_ms(1)

    assert await polled(sut.scheduler, waiting) is None
    assert await reaped(sut.scheduler) == {"r": 0}
    assert await waiters_of(sut.scheduler) == 0


async def test_a_long_sleep_is_no_slow_pace(sut):
    """Nobody is served while the pool wakes. That says nothing about how fast it will be: neither for those
    who come meanwhile, nor for those who come right after."""
    terms = QueueTerms(longest_queue=100, longest_wait_ms=40_000, ticket_ttl_ms=3_600_000)
    for number in range(10):
        waiting = await waiting_of(sut.scheduler, call(f"r{number}", queue=terms))
        assert waiting.predicted_wait_ms == WAKE_MS + 1_000 * (number + 1)
        await sut.advance_ms(1_500)

    await sut.scheduler.heartbeat(ready_replica("s", max_concurrency=1))

    assert (await waiting_of(sut.scheduler, call("late", queue=terms))).predicted_wait_ms < 20_000


async def test_the_queue_of_a_pool_that_sleeps_is_bounded(sut):
    short = QueueTerms(longest_queue=2, longest_wait_ms=60_000)
    for number in range(2):
        await waiting_of(sut.scheduler, call(f"r{number}", queue=short))

    assert await reason_of(sut.scheduler, call("r2", queue=short)) == RefusalReason.QUEUE_FULL


@pytest.mark.contract
class TestDemand:
    """What autoscaling reads."""

    @pytest.fixture
    async def redis(self, redis_scheduler, valkey_url):
        client = patient_client(valkey_url)
        yield redis_scheduler.scheduler, client
        await client.aclose()

    async def test_of_a_pool_that_sleeps(self, redis):
        scheduler, client = redis
        await waiting_of(scheduler, call("r0", "small", tokens=70))
        await waiting_of(scheduler, call("r1", "small", tokens=30))
        await reason_of(scheduler, call("r2", "small", queue=HURRIED))

        (demand,) = (await read_demand(client, [ASLEEP])).values()

        assert (demand.ready, demand.running, demand.waiting, demand.asked) == (0, 0, (0, 2, 0), 1)
        assert sorted((each.level, each.tokens) for each in demand.tickets) == [(1, 30), (1, 70)]
        assert all(0 <= each.waited_ms < 5_000 for each in demand.tickets)
        assert demand.service_ms is None

    async def test_of_one_that_works(self, redis):
        scheduler, client = redis
        await scheduler.heartbeat(ready_replica("a", max_concurrency=1))
        await scheduler.heartbeat(ready_replica("b", max_concurrency=2))
        requests = [admit_request(f"r{number}", tokens=100) for number in range(3)]
        for request in requests:
            await grant_of(scheduler, request)
        await settle(scheduler, requests[0])

        demand = (await read_demand(client, [ASLEEP, "large"]))[ASLEEP]

        assert (demand.ready, demand.running, demand.running_tokens) == (2, 2, 200)
        assert demand.service_ms is not None
        assert demand.service_ms < 5_000

    async def test_decisions_are_told(self, redis):
        _, client = redis

        await say_targets(client, {"small": {"replicas": 2, "reason": "demand"}})

        assert await said_targets(client, ["small", "large"]) == {
            "small": {"replicas": 2, "reason": "demand"}
        }


SMALL: dict[str, Any] = {"model": "auto", "metadata": {"task": "classify"}, "max_tokens": 5}
"""To the small tier; the large one is behind it."""


@pytest.mark.contract
class TestGateway:
    """The small tier takes 2 s to wake, as far as the gateway knows; calls may wait for 4 s."""

    @pytest.fixture
    async def gateway(
        self, redis_scheduler: object, valkey_url: str, tmp_path: Path
    ) -> AsyncIterator[GatewayUnderTest]:
        async with running_gateway(
            valkey_url,
            tmp_path,
            pools__specialist__replicas={"min": 0, "max": 1, "cold_start_s": 2},
            scheduler__longest_wait_s={"interactive": 1, "normal": 4, "batch": 4},
        ) as running:
            yield running

    @staticmethod
    async def until_one_waits(gateway: GatewayUnderTest) -> None:
        async with asyncio.timeout(10):
            while sum((await gateway.scheduler.pool_load("specialist")).waiting) == 0:
                await asyncio.sleep(0.02)

    async def test_it_is_ready_though_no_replica_is(self, gateway: GatewayUnderTest) -> None:
        assert await gateway.readiness() == (200, "ready")

    async def test_a_call_is_held_until_the_pool_is_awake(self, gateway: GatewayUnderTest) -> None:
        await gateway.add_engine("reserve", "large-1")
        call = asyncio.create_task(gateway.ask(SMALL))
        await self.until_one_waits(gateway)

        await gateway.add_engine("specialist", "small-1")

        status, answer = await call
        assert status == 200
        assert answer["model"] == "tiny"
        await gateway.until_no_lease()

    async def test_an_interactive_call_does_not_wait_so_long(self, gateway: GatewayUnderTest) -> None:
        await gateway.add_engine("reserve", "large-1")

        async with gateway.post(SMALL, x_sprat_class="interactive") as response:
            assert (response.status, response.headers["x-sprat-tier"]) == (200, "large")

    async def test_a_pool_that_never_wakes_is_an_error_in_time(self, gateway: GatewayUnderTest) -> None:
        asked_s = asyncio.get_running_loop().time()

        assert await gateway.ask(SMALL) == (504, "deadline_exceeded")

        assert asyncio.get_running_loop().time() - asked_s < 8
        assert sum((await gateway.scheduler.pool_load("specialist")).waiting) == 0
