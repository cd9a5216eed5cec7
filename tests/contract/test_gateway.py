"""The gateway's promises, over real HTTP and a real Valkey, with simulated engines that fail on demand."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from deployments.free_port import bound_socket
from tests.builders import ready_replica
from tests.gateways import FAST, GatewayUnderTest, running_gateway

pytestmark = pytest.mark.contract

SLOW = replace(FAST, decode_tokens_per_s=50)
NARROW = {"metadata": {"task": "classify"}}


@pytest.fixture
async def gateway(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(valkey_url, tmp_path) as running:
        yield running


async def events_of(response: aiohttp.ClientResponse) -> list[str]:
    return [event for event in (await response.text()).split("\n\n") if event]


async def test_a_narrow_call_goes_to_the_small_tier_and_says_what_it_cost(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1")
    await gateway.add_engine("reserve", "r1")

    async with gateway.post(NARROW | {"max_tokens": 7}) as response:
        body = await response.json()

    headers = response.headers
    assert response.status == 200, body
    assert (headers["x-sprat-tier"], headers["x-sprat-model"], headers["x-sprat-replica"]) == (
        "small",
        "tiny",
        "s1",
    )
    assert headers["x-sprat-reason"] == "rule:narrow"
    assert headers["x-sprat-request-id"].startswith("req-")
    prompt, output = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
    assert output == 7
    # 0.1 and 1 micro-USD per prompt and output token here, 100 times as much on the large tier.
    cost = -(-(prompt * 100_000 + output * 1_000_000) // 1_000_000)
    large = -(-(prompt * 10_000_000 + output * 100_000_000) // 1_000_000)
    assert float(headers["x-sprat-cost-usd"]) == pytest.approx(cost / 1e6)
    assert float(headers["x-sprat-saved-usd"]) == pytest.approx((large - cost) / 1e6)
    await gateway.until_no_lease()
    spend = await gateway.scheduler.spend_today()
    assert (spend.spent_micro_usd, spend.saved_micro_usd, spend.calls) == (cost, large - cost, 1)
    assert dict(spend.calls_by_tier) == {"small": 1}


async def test_a_stream_passes_through_and_ends_with_its_cost(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1")

    async with gateway.post({"model": "small", "stream": True, "max_tokens": 5}) as response:
        events = await events_of(response)

    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-sprat-replica"] == "s1"
    assert events[-1] == "data: [DONE]"
    assert events[-2].startswith(": sprat ")
    assert json.loads(events[-2].removeprefix(": sprat "))["cost_usd"] > 0
    assert not any('"choices":[]' in event for event in events), "usage was not asked for"
    await gateway.until_no_lease()
    assert (await gateway.scheduler.spend_today()).calls == 1


async def test_usage_is_shown_to_clients_that_ask_for_it(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1")

    async with gateway.post(
        {"model": "small", "stream": True, "max_tokens": 5, "stream_options": {"include_usage": True}}
    ) as response:
        events = await events_of(response)

    usage = json.loads(events[-3].removeprefix("data: "))
    assert usage["usage"]["completion_tokens"] == 5


async def test_completions_models_and_health(gateway: GatewayUnderTest) -> None:
    root = gateway.url.removesuffix("/v1")
    async with gateway.session.get(root + "/readyz") as response:
        assert response.status == 503
    await gateway.add_engine("specialist", "s1")

    assert await gateway.until_ready() == "ready"
    async with gateway.session.get(root + "/livez") as response:
        assert response.status == 200
    key = {"authorization": f"Bearer {gateway.key}"}
    async with gateway.session.get(gateway.url + "/models", headers=key) as response:
        names = [model["id"] for model in (await response.json())["data"]]
    assert names == ["auto", "small", "large", "intent@1", "intent@2", "tiny", "huge"]
    async with gateway.session.get(gateway.url + "/models/tiny", headers=key) as response:
        assert (await response.json())["id"] == "tiny"
    prompt = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 3}
    async with gateway.session.post(gateway.url + "/completions", json=prompt, headers=key) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("authorization", "path"),
    [
        (None, "/chat/completions"),
        ("Bearer ", "/chat/completions"),
        ("Bearer sk-sprat-wrong", "/chat/completions"),
        ("Basic abc", "/models"),
        (None, "/no/such/route"),
    ],
)
async def test_no_key_no_service(gateway: GatewayUnderTest, authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"authorization": authorization}

    async with gateway.session.post(gateway.url + path, json={}, headers=headers) as response:
        body = await response.json()

    assert response.status == 401
    assert body["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"best_of": 4}, 400, "unknown_parameter"),
        (
            {"model": "small", "messages": [{"role": "user", "content": "w " * 900}]},
            400,
            "context_length_exceeded",
        ),
        (
            {"model": "small", "messages": [{"role": "user", "content": "x" * 3_000_000}]},
            413,
            "body_too_large",
        ),
    ],
)
async def test_errors_have_openais_shape(
    gateway: GatewayUnderTest, body: dict[str, Any], status: int, code: str
) -> None:
    await gateway.add_engine("specialist", "s1")

    async with gateway.post(body) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    await gateway.until_no_lease()


async def test_unknown_routes_and_methods(gateway: GatewayUnderTest) -> None:
    key = {"authorization": f"Bearer {gateway.key}"}
    async with gateway.session.post(gateway.url + "/nothing", headers=key) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url")
    async with gateway.session.get(gateway.url + "/chat/completions", headers=key) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")


async def test_no_living_replica_is_503(gateway: GatewayUnderTest) -> None:
    async with gateway.post({"model": "small"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "no_replica")
        assert int(response.headers["retry-after"]) >= 1


async def test_a_full_pool_is_429_where_nobody_may_wait(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> None:
    async with running_gateway(valkey_url, tmp_path, scheduler__longest_queue=0) as gateway:
        engine = await gateway.add_engine("specialist", "s1", cap=1, profile=SLOW)
        first = asyncio.create_task(_complete(gateway, {"model": "small", "max_tokens": 40}))
        await engine.until_running(within_s=2)
        async with gateway.post({"model": "small"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "at_capacity")
            assert int(response.headers["retry-after"]) >= 1
        assert await first == 200


async def _complete(gateway: GatewayUnderTest, body: dict[str, Any]) -> int:
    async with gateway.post(body) as response:
        await response.read()
        return response.status


async def test_a_dead_small_tier_falls_back_to_the_large_one(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("reserve", "r1")

    async with gateway.post(NARROW) as response:
        assert response.status == 200
        assert response.headers["x-sprat-tier"] == "large"
        assert float(response.headers["x-sprat-saved-usd"]) == 0


async def test_a_prompt_that_the_engine_finds_too_long_goes_up(gateway: GatewayUnderTest) -> None:
    # The engine's real context is smaller than the YAML says, so only its own count can find out.
    await gateway.add_engine("specialist", "s1", context_tokens=20)
    await gateway.add_engine("reserve", "r1")
    body = {"messages": [{"role": "user", "content": "word " * 40}]}

    async with gateway.post(NARROW | body) as response:
        assert response.status == 200, await response.text()
        assert response.headers["x-sprat-tier"] == "large"
        assert response.headers["x-sprat-reason"] == "rule:narrow;context>small"
    await gateway.until_no_lease()
    spent = (await gateway.scheduler.spend_today()).spent_micro_usd
    async with gateway.post(body | {"model": "small"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "context_length_exceeded")
    await gateway.until_no_lease()
    assert (await gateway.scheduler.spend_today()).spent_micro_usd == spent, "a refused call costs nothing"


@pytest.mark.parametrize("stream", [False, True])
async def test_while_no_byte_was_sent_another_replica_answers(
    gateway: GatewayUnderTest, *, stream: bool
) -> None:
    await gateway.add_engine("specialist", "broken", refuse=True)
    dead = await gateway.add_engine("specialist", "dead")
    await dead.runner.cleanup()  # its entry in the directory goes on, its port is closed
    await gateway.add_engine("specialist", "alive")

    for _ in range(4):
        async with gateway.post({"model": "small", "stream": stream, "max_tokens": 3}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["x-sprat-replica"] == "alive"
            await response.read()
    await gateway.until_no_lease()
    assert (await gateway.scheduler.spend_today()).calls == 4


async def test_when_every_replica_fails_the_error_is_clean(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "broken", refuse=True)

    async with gateway.post({"model": "small"}) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "engine_failed")
    assert "127.0.0.1" not in error["message"]
    await gateway.until_no_lease()
    assert (await gateway.scheduler.spend_today()).spent_micro_usd == 0


async def test_a_stream_that_breaks_ends_with_an_error_event_and_pays_what_came(
    gateway: GatewayUnderTest,
) -> None:
    await gateway.add_engine("specialist", "breaks", fail_after_tokens=3)

    async with gateway.post({"model": "small", "stream": True, "max_tokens": 10}) as response:
        events = await events_of(response)

    assert response.status == 200
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_failed"
    await gateway.until_no_lease()
    assert (await gateway.scheduler.spend_today()).spent_micro_usd > 0


async def test_a_unary_call_cut_in_the_middle_is_answered_by_another_replica(
    gateway: GatewayUnderTest,
) -> None:
    await gateway.add_engine("specialist", "a-breaks", fail_after_tokens=3)
    await gateway.add_engine("specialist", "b-works")

    async with gateway.post({"model": "small", "max_tokens": 10}) as response:
        assert response.status == 200
        assert response.headers["x-sprat-replica"] == "b-works"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_engine_and_settles(
    gateway: GatewayUnderTest, *, stream: bool
) -> None:
    engine = await gateway.add_engine("specialist", "s1", profile=SLOW)

    call = asyncio.create_task(_complete(gateway, {"model": "small", "stream": stream, "max_tokens": 200}))
    await engine.until_running(within_s=2)
    await asyncio.sleep(0.2)
    call.cancel()

    async with asyncio.timeout(1):
        while engine.running:
            await asyncio.sleep(0.01)
    await gateway.until_no_lease(1.0)
    spent = (await gateway.scheduler.spend_today()).spent_micro_usd
    assert spent > 0, "leaving early does not avoid the charge: the prompt, and what arrived of the answer"


async def test_odd_requests_get_clean_errors(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1")

    async with gateway.post({"model": "small"}, host="x/v1/models?") as response:
        assert (response.status, "Host" in (await response.json())["error"]["message"]) == (400, True)
    async with gateway.session.post(
        gateway.url + "/chat/completions",
        data=gzip.compress(b'{"model": "small"}'),
        headers={"authorization": f"Bearer {gateway.key}", "content-encoding": "gzip"},
    ) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (415, "unsupported_encoding")
    async with gateway.post({"model": "small"}) as response:
        assert response.headers["server"] == "sprat"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_talks_nonsense_is_a_clean_error(
    gateway: GatewayUnderTest, *, stream: bool
) -> None:
    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(body=b'data: {"choices":[],"usage":{"oops":1}}\n\n', status=200)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", nonsense)
    runner = web.AppRunner(application)
    await runner.setup()
    sock = bound_socket("127.0.0.1")
    await web.SockSite(runner, sock).start()
    address = "{}:{}".format(*sock.getsockname())
    await gateway.scheduler.heartbeat(ready_replica("odd", "specialist", address=address))

    async with gateway.post({"model": "small", "stream": stream}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (502, "engine_failed")

    await gateway.until_no_lease()
    await runner.cleanup()


async def test_a_gateway_that_stops_lets_running_calls_end(gateway: GatewayUnderTest) -> None:
    engine = await gateway.add_engine("specialist", "s1", profile=SLOW)
    call = asyncio.create_task(_complete(gateway, {"model": "small", "max_tokens": 40}))
    await engine.until_running(within_s=2)

    await gateway.gateway.close(drain_s=5)

    assert await call == 200
    assert (await gateway.scheduler.spend_today()).calls == 1


async def test_a_call_that_takes_too_long_ends(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> None:
    async with running_gateway(valkey_url, tmp_path, gateway__request_timeout_s=0.3) as gateway:
        engine = await gateway.add_engine("specialist", "s1", profile=SLOW)

        async with gateway.post({"model": "small", "max_tokens": 200}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (504, "engine_timeout")
        async with gateway.post({"model": "small", "max_tokens": 200, "stream": True}) as response:
            events = await events_of(response)
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_timeout"
        async with asyncio.timeout(1):
            while engine.running:
                await asyncio.sleep(0.01)


async def test_many_calls_at_once_leave_the_books_exact(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", cap=100, profile=FAST)
    await gateway.add_engine("specialist", "s2", cap=100, profile=FAST)

    statuses = await asyncio.gather(
        *[
            _complete(gateway, {"model": "small", "stream": number % 2 == 0, "max_tokens": 5})
            for number in range(60)
        ]
    )

    assert set(statuses) == {200}
    await gateway.until_no_lease()
    load = await gateway.scheduler.pool_load("specialist")
    assert all(replica.load_requests == replica.load_tokens == 0 for replica in load.replicas)
    assert (await gateway.scheduler.spend_today()).calls == 60


async def test_a_body_that_is_too_large_is_refused_in_the_dialect_of_its_route(
    gateway: GatewayUnderTest,
) -> None:
    async with gateway.post({"messages": "x" * 3_000_000}, path="/messages") as response:
        body = await response.json()

    assert response.status == 413
    assert body["type"] == "error"
    assert set(body["error"]) >= {"type", "message"}
