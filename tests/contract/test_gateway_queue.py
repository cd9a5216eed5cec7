"""Calls that wait for a slot: order, deadlines, bounds, and what is left when they give up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.tenants import Budget, BudgetWindow, key_owner
from cluster.types import PriorityClass
from tests.gateways import FAST, GatewayUnderTest, RunningEngine, running_gateway

pytestmark = pytest.mark.contract

SLOW = replace(FAST, decode_tokens_per_s=100)
SMALL = {"model": "small", "max_tokens": 20}
DOLLAR = 1_000_000


@pytest.fixture
async def gateway(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(valkey_url, tmp_path) as running:
        yield running


async def busy(gateway: GatewayUnderTest, *, tokens: int = 40) -> tuple[RunningEngine, asyncio.Task[Any]]:
    """One replica with one slot, and a call in it."""
    engine = await gateway.add_engine("specialist", "s1", cap=1, profile=SLOW)
    first = asyncio.create_task(gateway.ask(SMALL | {"max_tokens": tokens}))
    await engine.until_running()
    return engine, first


async def waiting(gateway: GatewayUnderTest) -> tuple[int, int, int]:
    return (await gateway.scheduler.pool_load("specialist")).waiting


async def until_waiting(gateway: GatewayUnderTest, *counts: int) -> None:
    async with asyncio.timeout(10):
        while await waiting(gateway) != counts:
            await asyncio.sleep(0.005)


async def test_a_call_waits_for_the_slot_and_is_answered(gateway: GatewayUnderTest) -> None:
    _, first = await busy(gateway)
    second = asyncio.create_task(gateway.ask(SMALL))
    await until_waiting(gateway, 0, 1, 0)

    assert (await first)[0] == 200
    assert (await second)[0] == 200
    assert await waiting(gateway) == (0, 0, 0)
    await gateway.until_no_lease()


async def test_classes_are_served_in_order(gateway: GatewayUnderTest) -> None:
    _, first = await busy(gateway, tokens=60)
    order: list[str] = []

    async def ask(priority: str) -> None:
        status, _ = await gateway.ask(SMALL | {"max_tokens": 5}, x_sprat_class=priority)
        assert status == 200
        order.append(priority)

    calls = []
    for priority, counts in (("batch", (0, 0, 1)), ("normal", (0, 1, 1)), ("interactive", (1, 1, 1))):
        calls.append(asyncio.create_task(ask(priority)))
        await until_waiting(gateway, *counts)
    await asyncio.gather(first, *calls)

    assert order == ["interactive", "normal", "batch"]


async def test_a_key_bounds_the_class(gateway: GatewayUnderTest) -> None:
    key, _ = gateway.new_key(highest_class=PriorityClass.BATCH)
    _, first = await busy(gateway)
    second = asyncio.create_task(gateway.ask(SMALL, key=key, x_sprat_class="interactive"))

    await until_waiting(gateway, 0, 0, 1)

    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_a_call_past_its_deadline_is_never_started(gateway: GatewayUnderTest) -> None:
    engine, first = await busy(gateway, tokens=80)

    # The pool has not ended a call yet and believes the throughput in its YAML: the call is let in.
    assert await gateway.ask(SMALL, x_sprat_deadline_ms="400") == (504, "deadline_exceeded")

    assert (await first)[0] == 200
    await asyncio.sleep(0.3)
    assert engine.running == 0
    assert (await gateway.scheduler.spend_today()).calls == 1
    assert await waiting(gateway) == (0, 0, 0)
    await gateway.until_no_lease()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_sprat_class", "urgent"),
        ("x_sprat_deadline_ms", "0"),
        ("x_sprat_deadline_ms", "-5"),
        ("x_sprat_deadline_ms", "soon"),
    ],
)
async def test_nonsense_in_headers_is_refused(gateway: GatewayUnderTest, header: str, value: str) -> None:
    async with gateway.post(SMALL, **{header: value}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == header.replace("_", "-")


async def test_a_full_queue_says_when_to_come_back(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> None:
    async with running_gateway(valkey_url, tmp_path, scheduler__longest_queue=1) as gateway:
        _, first = await busy(gateway)
        second = asyncio.create_task(gateway.ask(SMALL))
        await until_waiting(gateway, 0, 1, 0)

        async with gateway.post(SMALL) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "queue_full")
            assert int(response.headers["retry-after"]) >= 1

        assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_a_wait_that_would_be_too_long_is_refused_at_once(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> None:
    async with running_gateway(valkey_url, tmp_path, pools__specialist__max_concurrency=1) as gateway:
        engine, first = await busy(gateway, tokens=100)  # 1 s, which the pool learns
        assert (await first)[0] == 200
        await gateway.until_settled()
        again = asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 100}))
        await engine.until_running()

        async with asyncio.timeout(0.25):
            assert await gateway.ask(SMALL, x_sprat_deadline_ms="300") == (429, "wait_too_long")

        assert (await again)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_the_queue_leaves_nothing_behind(
    gateway: GatewayUnderTest, *, stream: bool
) -> None:
    key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, DOLLAR))
    _, first = await busy(gateway, tokens=200)  # on a slow machine the second comes late
    second = asyncio.create_task(gateway.ask(SMALL | {"stream": stream}, key=key))
    await until_waiting(gateway, 0, 1, 0)
    assert (await gateway.budget(key_owner(key_id)))[1] > 0

    second.cancel()
    await until_waiting(gateway, 0, 0, 0)

    await gateway.until_settled()
    assert await gateway.budget(key_owner(key_id)) == (0, 0)
    assert (await first)[0] == 200
    await gateway.until_no_lease()


async def test_two_gateways_share_one_queue(
    gateway: GatewayUnderTest, valkey_url: str, tmp_path: Path
) -> None:
    async with running_gateway(valkey_url, tmp_path) as other:
        _, first = await busy(gateway, tokens=30)
        calls = [asyncio.create_task(each.ask(SMALL | {"max_tokens": 2})) for each in (gateway, other) * 4]
        assert [status for status, _ in await asyncio.gather(first, *calls)] == [200] * 9
    await gateway.until_no_lease()
