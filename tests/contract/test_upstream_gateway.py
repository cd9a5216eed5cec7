"""Calls of clients that an upstream pool answers: failover, money, streams, through a real gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.types import ReplicaPhase, ReplicaState
from deployments.sim.app import make_app
from deployments.sim.settings import SimSettings
from tests.configs import simulated
from tests.gateways import FAST, GatewayUnderTest, running_gateway
from tests.providers import (
    DONE,
    KEY,
    MODEL,
    Provider,
    answer,
    event,
    hang,
    replies,
    running_provider,
    running_replica,
    serving,
    streamed,
)

pytestmark = pytest.mark.contract

LARGE = {"model": "large", "max_tokens": 20}


@dataclass
class Hosted:
    """A gateway whose large tier are the upstream pools `first` and `second`; `first` is cheaper."""

    gateway: GatewayUnderTest
    first: Provider
    second: Provider


def pool(provider: Provider, **changes: Any) -> dict[str, Any]:
    return {
        "tier": "large",
        "base_model": "hosted",
        "node_class": "big",
        "engine": "upstream",
        "context_tokens": 2048,
        "default_max_tokens": 64,
        "upstream": provider.section(**changes),
    }


@asynccontextmanager
async def hosted(valkey_url: str, folder: Path, first: Provider | None = None) -> AsyncIterator[Hosted]:
    async with AsyncExitStack() as stack:
        first = first or await stack.enter_async_context(running_provider())
        second = await stack.enter_async_context(running_provider())
        dearer = {"prompt_usd_per_mtok": 20, "output_usd_per_mtok": 80}
        pools = {
            "specialist": simulated()["pools"]["specialist"],
            "first": pool(first),
            "second": pool(second, prices=dearer),
        }
        gateway = await stack.enter_async_context(
            running_gateway(
                valkey_url,
                folder,
                pools=pools,
                base_models=simulated()["base_models"] | {"hosted": {"source": "upstream"}},
            )
        )
        for name, provider in (("first", first), ("second", second)):
            replica = await stack.enter_async_context(running_replica(provider, "hosted"))
            state = ReplicaState(name, name, ReplicaPhase.READY, replica.address, epoch=1, max_concurrency=8)
            await gateway.scheduler.heartbeat(state)
            beat = asyncio.create_task(_beat(gateway, state))
            stack.callback(beat.cancel)
        yield Hosted(gateway, first, second)


async def _beat(gateway: GatewayUnderTest, state: ReplicaState) -> None:
    while True:
        await asyncio.sleep(0.5)
        await gateway.scheduler.heartbeat(state)


@pytest.fixture
async def fleet(redis_scheduler: object, valkey_url: str, tmp_path: Path) -> AsyncIterator[Hosted]:
    async with hosted(valkey_url, tmp_path) as running:
        yield running


async def test_a_call_costs_the_list_price(fleet):
    async with fleet.gateway.post(LARGE) as response:
        assert response.status == 200, await response.text()
        body = await response.json()
        assert response.headers["x-sprat-model"] == body["model"] == "hosted"
        # 11 prompt and 3 output tokens at 2 and 8 USD per million
        assert float(response.headers["x-sprat-cost-usd"]) == 0.000046
        request_id = response.headers["x-sprat-request-id"]
    await fleet.gateway.until_settled()
    entry = fleet.gateway.ledger.find([request_id])[request_id]
    assert (entry.pool, entry.model, entry.cost_micro_usd) == ("first", "hosted", 46)
    assert fleet.second.seen == []


async def test_a_stream_costs_what_it_reports_and_hides_it(fleet):
    async with fleet.gateway.post(LARGE | {"stream": True}) as response:
        events = await response.read()
    assert b'"cost_usd":0.000046' in events.replace(b" ", b"")
    assert b'"usage":{' not in events
    assert events.endswith(DONE)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_usage_is_paid_by_its_text(fleet, stream):
    text = "word " * 16  # 80 bytes
    fleet.first.answers = [
        streamed(event(text, "stop"), DONE) if stream else replies(200, answer(text, usage=None))
    ]
    async with fleet.gateway.post(LARGE | {"stream": stream, "stream_options": None}) as response:
        assert response.status == 200
        await response.read()
        request_id = response.headers["x-sprat-request-id"]
    await fleet.gateway.until_settled()
    entry = fleet.gateway.ledger.find([request_id])[request_id]
    assert (entry.output_tokens, entry.estimated) == (20, True)


@pytest.mark.parametrize(
    "failing",
    [replies(500), replies(401), replies(404), replies(429, retry_after="60"), replies(302, location="/")],
    ids=["500", "401", "404", "429", "302"],
)
async def test_the_second_pool_answers_when_the_first_cannot(fleet, failing):
    fleet.first.answers = [failing]
    for stream in (False, True):
        async with fleet.gateway.post(LARGE | {"stream": stream}) as response:
            assert response.status == 200, await response.text()
            await response.read()
            assert response.headers["x-sprat-replica"] == "second"
    assert fleet.first.seen


async def test_when_all_are_busy_the_client_learns_when_to_come_back(fleet):
    fleet.first.answers = fleet.second.answers = [replies(429, retry_after="30")]
    for stream in (False, True):
        async with fleet.gateway.post(LARGE | {"stream": stream}) as response:
            assert response.status == 429
            assert 25 <= int(response.headers["retry-after"]) <= 30
            error = (await response.json())["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "engine_busy")


async def test_when_all_keys_are_refused_it_is_no_fault_of_the_client(fleet):
    fleet.first.answers = fleet.second.answers = [replies(401)]
    async with fleet.gateway.post(LARGE) as response:
        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1


async def test_a_provider_that_dies_in_mid_stream_is_an_error_event(fleet):
    fleet.first.answers = [streamed(event("half an answ"))]
    async with fleet.gateway.post(LARGE | {"stream": True}) as response:
        events = await response.read()
    assert b"half an answ" in events
    assert b'"error"' in events
    assert b"[DONE]" not in events
    assert fleet.second.seen == [], "the client has seen a part of it"


async def test_a_client_that_leaves_stops_the_provider(fleet):
    fleet.first.answers = [streamed(event("a"), then=hang)]
    async with fleet.gateway.post(LARGE | {"stream": True}) as response:
        await response.content.readany()
        response.close()
    await fleet.first.until_cancelled()
    await fleet.gateway.until_settled()


async def test_what_is_wrong_with_a_call_is_told_without_the_provider(fleet):
    fleet.first.answers = [
        replies(400, {"error": {"message": f"bad seed for {MODEL} at {fleet.first.url}, key {KEY}"}})
    ]
    async with fleet.gateway.post(LARGE) as response:
        text = await response.text()
        assert response.status == 400
    assert "bad seed" in text
    assert not [word for word in (MODEL, KEY, "127.0.0.1") if word in text]
    assert fleet.second.seen == []


async def test_the_key_is_in_no_status_and_no_log(fleet, caplog):
    caplog.set_level(logging.DEBUG)
    for status in (200, 401, 500):
        fleet.first.answers = fleet.second.answers = [replies(status, {"error": {"message": KEY}})]
        async with fleet.gateway.post(LARGE) as response:
            assert KEY not in await response.text() + str(response.headers)
    loads = [await fleet.gateway.scheduler.pool_load(name) for name in ("first", "second")]
    assert KEY not in str(loads) + caplog.text + fleet.gateway.config.model_dump_json()


async def test_an_engine_as_the_provider(redis_scheduler, valkey_url, tmp_path):
    """The simulated one, which has vLLM's HTTP surface."""
    sim = make_app(SimSettings(models=(MODEL,), context_tokens=512, profile=FAST, token=KEY))
    async with (
        serving(sim) as address,
        hosted(valkey_url, tmp_path, first=Provider(f"http://{address}/v1")) as fleet,
    ):
        async with fleet.gateway.post(LARGE) as response:
            body = await response.json()
            usage = body["usage"]
            cost = usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8
            assert float(response.headers["x-sprat-cost-usd"]) == pytest.approx(cost / 1e6)
            assert (usage["completion_tokens"], body["model"]) == (20, "hosted")
            assert response.headers["x-sprat-replica"] == "first"
        async with fleet.gateway.post(LARGE | {"stream": True}) as response:
            assert (await response.read()).endswith(DONE)
        async with fleet.gateway.session.post(
            fleet.gateway.url + "/completions",
            json={"model": "large", "prompt": "hi", "max_tokens": 5},
            headers={"authorization": f"Bearer {fleet.gateway.key}"},
        ) as response:
            assert (await response.json())["usage"]["completion_tokens"] == 5
        too_long = {"model": "hosted", "messages": [{"role": "user", "content": "x " * 3000}]}
        assert (await fleet.gateway.ask(too_long))[1] == "context_length_exceeded"
