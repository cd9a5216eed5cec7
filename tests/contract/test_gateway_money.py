"""Budgets, rates and bookings of real calls, over HTTP, with a real Valkey and a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.tenants import Budget, BudgetWindow, RateLimit, key_owner, tenant_owner
from tests.gateways import FAST, GatewayUnderTest, running_gateway

pytestmark = pytest.mark.contract

SMALL = {"model": "small", "max_tokens": 8}
SLOW = replace(FAST, decode_tokens_per_s=100)
DOLLAR = 1_000_000


@pytest.fixture
async def gateway(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(valkey_url, tmp_path) as running:
        yield running


def total(micro_usd: int) -> Budget:
    return Budget("", BudgetWindow.TOTAL, micro_usd)


async def test_what_a_call_costs_is_spent_once_in_redis_and_in_the_ledger(gateway: GatewayUnderTest) -> None:
    key, key_id = gateway.new_key(total(DOLLAR))
    await gateway.add_engine("specialist", "s1")

    async with gateway.post(SMALL, key=key) as response:
        assert response.status == 200, await response.text()
        cost = round(float(response.headers["x-sprat-cost-usd"]) * 1e6)
        request_id = response.headers["x-sprat-request-id"]
        usage = (await response.json())["usage"]
    await gateway.until_settled()

    assert cost > 0
    assert await gateway.budget(key_owner(key_id)) == (cost, 0)
    entry = gateway.ledger.find([request_id])[request_id]
    assert (entry.cost_micro_usd, entry.kind, entry.tenant, entry.key_id) == (cost, "settled", "acme", key_id)
    assert (entry.prompt_tokens, entry.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (entry.tier, entry.pool, entry.model) == ("small", "specialist", "tiny")
    sums = [(key_owner(key_id), "total"), (tenant_owner("acme"), "total")]
    assert gateway.ledger.spent(sums) == dict.fromkeys(sums, cost)


async def test_the_hold_bounds_what_the_engine_counts(gateway: GatewayUnderTest) -> None:
    key, key_id = gateway.new_key(total(DOLLAR))
    await gateway.add_engine("specialist", "s1", profile=SLOW)
    body = {"model": "small", "max_tokens": 50, "messages": [{"role": "user", "content": "日本語 🐟 " * 10}]}
    call = asyncio.create_task(gateway.ask(body, key=key))
    async with asyncio.timeout(10):
        while not (held := (await gateway.budget(key_owner(key_id)))[1]):
            await asyncio.sleep(0.005)
    assert (await call)[0] == 200
    await gateway.until_settled()

    spent, left_held = await gateway.budget(key_owner(key_id))
    assert 0 < spent <= held
    assert left_held == 0
    assert (await gateway.scheduler.spend_today()).overrun_micro_usd == 0


async def test_parallel_calls_cannot_overspend(gateway: GatewayUnderTest) -> None:
    """LiteLLM #34732, #40095: check, then increment."""
    long_call = SMALL | {"max_tokens": 150}  # 1.5 s: nobody has ended when the last one asks
    await gateway.add_engine("specialist", "s1", cap=64, profile=SLOW)
    probe, probe_id = gateway.new_key(total(DOLLAR), tenant="probe")
    call = asyncio.create_task(gateway.ask(long_call, key=probe))
    async with asyncio.timeout(10):
        while not (hold := (await gateway.budget(key_owner(probe_id)))[1]):
            await asyncio.sleep(0.002)
    await call
    key, key_id = gateway.new_key(total(5 * hold))

    answers = await asyncio.gather(*(gateway.ask(long_call, key=key) for _ in range(60)))

    assert sum(status == 200 for status, _ in answers) == 5
    assert {answer for status, answer in answers if status != 200} == {"insufficient_quota"}
    await gateway.until_settled()
    spent, held = await gateway.budget(key_owner(key_id))
    assert (spent <= 5 * hold, held) == (True, 0)


async def test_a_refused_budget_has_no_retry_after_and_takes_nothing(gateway: GatewayUnderTest) -> None:
    key, key_id = gateway.new_key(total(1))
    await gateway.add_engine("specialist", "s1")

    async with gateway.post(SMALL, key=key) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (429, "insufficient_quota")
        assert "retry-after" not in response.headers

    assert await gateway.budget(key_owner(key_id)) == (0, 0)
    await gateway.until_no_lease()


async def test_rates_refuse_with_the_time_to_wait(gateway: GatewayUnderTest) -> None:
    key, _ = gateway.new_key(requests=RateLimit(per_minute=60, burst=2))
    await gateway.add_engine("specialist", "s1")

    assert [(await gateway.ask(SMALL, key=key))[0] for _ in range(2)] == [200, 200]
    async with gateway.post(SMALL, key=key) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response.headers["retry-after"] == "1"
    await asyncio.sleep(1.1)
    assert (await gateway.ask(SMALL, key=key))[0] == 200


async def test_a_call_that_no_bucket_can_hold_is_a_400(gateway: GatewayUnderTest) -> None:
    key, _ = gateway.new_key(tokens=RateLimit(per_minute=60, burst=10))
    await gateway.add_engine("specialist", "s1")

    assert await gateway.ask(SMALL | {"max_tokens": 100}, key=key) == (400, "request_exceeds_rate_limit")


async def test_unused_tokens_go_back_to_the_bucket(gateway: GatewayUnderTest) -> None:
    # Each call estimates about 120 tokens and uses about 20: without the correction only one fits.
    key, _ = gateway.new_key(tokens=RateLimit(per_minute=60, burst=150))
    await gateway.add_engine("specialist", "s1")
    estimate = SMALL | {"max_tokens": 100, "stop": ["never"]}

    first, _ = await gateway.ask(estimate | {"max_tokens": 8}, key=key)
    await gateway.until_settled()
    second, _ = await gateway.ask(estimate, key=key)

    assert (first, second) == (200, 200)


async def test_an_engine_that_fails_costs_nothing(gateway: GatewayUnderTest) -> None:
    key, key_id = gateway.new_key(total(DOLLAR), requests=RateLimit(per_minute=1, burst=1))
    engine = await gateway.add_engine("specialist", "s1")
    await engine.runner.cleanup()  # its entry stays: connections are refused

    status, code = await gateway.ask(SMALL, key=key)
    assert (status, code) == (502, "engine_failed")
    await gateway.until_settled()
    assert await gateway.budget(key_owner(key_id)) == (0, 0)

    engine.beat.cancel()
    await gateway.scheduler.deregister(engine.state)
    await gateway.add_engine("specialist", "s2")
    assert (await gateway.ask(SMALL, key=key))[0] == 200, "the request rate was given back"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_pays_for_what_ran(gateway: GatewayUnderTest, *, stream: bool) -> None:
    key, key_id = gateway.new_key(total(DOLLAR))
    engine = await gateway.add_engine("specialist", "s1", profile=SLOW)
    call = asyncio.create_task(gateway.ask(SMALL | {"max_tokens": 200, "stream": stream}, key=key))
    await engine.until_running()
    await asyncio.sleep(0.2)

    call.cancel()
    await engine.until_idle()
    await gateway.until_no_lease()
    await gateway.until_settled()

    spent, held = await gateway.budget(key_owner(key_id))
    assert spent > 0
    assert held == 0


class TestIdempotencyKey:
    async def test_a_retry_gets_the_first_answer_and_runs_nothing(self, gateway: GatewayUnderTest) -> None:
        await gateway.add_engine("specialist", "s1")
        async with gateway.post(SMALL, idempotency_key="abc") as response:
            first, first_id = await response.read(), response.headers["x-sprat-request-id"]
        calls = (await gateway.scheduler.spend_today()).calls

        async with gateway.post(SMALL, idempotency_key="abc") as response:
            again = await response.read()
            headers = response.headers

        assert (again, headers["x-sprat-request-id"]) == (first, first_id)
        assert headers["x-sprat-idempotent-replay"] == "true"
        await gateway.until_settled()
        assert (await gateway.scheduler.spend_today()).calls <= max(calls, 1)

    async def test_another_body_is_refused_and_another_tenant_is_apart(
        self, gateway: GatewayUnderTest
    ) -> None:
        await gateway.add_engine("specialist", "s1")
        other, _ = gateway.new_key(tenant="other")
        assert (await gateway.ask(SMALL, idempotency_key="abc"))[0] == 200

        assert await gateway.ask(SMALL | {"max_tokens": 9}, idempotency_key="abc") == (
            422,
            "idempotency_key_reused",
        )
        assert (await gateway.ask(SMALL | {"max_tokens": 9}, idempotency_key="abc", key=other))[0] == 200

    async def test_a_second_call_while_the_first_runs_is_refused(self, gateway: GatewayUnderTest) -> None:
        engine = await gateway.add_engine("specialist", "s1", profile=SLOW)
        body = SMALL | {"max_tokens": 60}
        first = asyncio.create_task(gateway.ask(body, idempotency_key="abc"))
        await engine.until_running()

        assert await gateway.ask(body, idempotency_key="abc") == (409, "idempotency_key_in_use")

        assert (await first)[0] == 200

    async def test_a_call_that_was_refused_may_be_tried_again(self, gateway: GatewayUnderTest) -> None:
        assert (await gateway.ask(SMALL, idempotency_key="abc"))[0] == 503
        await gateway.add_engine("specialist", "s1")
        assert (await gateway.ask(SMALL, idempotency_key="abc"))[0] == 200

    async def test_a_client_that_left_may_try_again(self, gateway: GatewayUnderTest) -> None:
        engine = await gateway.add_engine("specialist", "s1", profile=SLOW)
        body = SMALL | {"max_tokens": 60}
        first = asyncio.create_task(gateway.ask(body, idempotency_key="abc"))
        await engine.until_running()
        first.cancel()
        await gateway.until_no_lease()

        assert (await gateway.ask(body, idempotency_key="abc"))[0] == 200

    async def test_an_engine_error_is_an_outcome(self, gateway: GatewayUnderTest) -> None:
        engine = await gateway.add_engine("specialist", "s1")
        await engine.runner.cleanup()
        assert await gateway.ask(SMALL, idempotency_key="abc") == (502, "engine_failed")
        engine.beat.cancel()
        await gateway.scheduler.deregister(engine.state)
        await gateway.add_engine("specialist", "s2")

        assert await gateway.ask(SMALL, idempotency_key="abc") == (502, "engine_failed")

    async def test_streams_are_not_replayed(self, gateway: GatewayUnderTest) -> None:
        await gateway.add_engine("specialist", "s1")
        body = SMALL | {"stream": True}
        async with gateway.post(body, idempotency_key="abc") as response:
            assert response.status == 200
            await response.read()

        assert await gateway.ask(body, idempotency_key="abc") == (409, "already_completed")

    async def test_redis_never_holds_a_readable_answer(self, gateway: GatewayUnderTest) -> None:
        await gateway.add_engine("specialist", "s1")
        _, answer = await gateway.ask(SMALL, idempotency_key="a-secret-key")
        text = answer["choices"][0]["message"]["content"]
        client = gateway.scheduler._client

        stored = {key: json.dumps(await client.hgetall(key)) for key in await client.keys("*idem*")}

        assert len(stored) == 1
        assert not any(text in value or "a-secret-key" in key + value for key, value in stored.items())

    @pytest.mark.parametrize("key", ["", "two words", "x" * 129, "schlüssel"])
    async def test_a_key_of_the_wrong_form_is_refused(self, gateway: GatewayUnderTest, key: str) -> None:
        async with gateway.post(SMALL, idempotency_key=key) as response:
            assert response.status == 400
