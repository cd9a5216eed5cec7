"""Adapters of the registry behind a real gateway: asked for by name, loaded where the call runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterContent
from tests.gateways import AdapterRoom, GatewayUnderTest, running_gateway

pytestmark = pytest.mark.contract


def content(number: int, rank: int = 8) -> AdapterContent:
    return AdapterContent(rank, ("q_proj",), 1000, f"{number:064x}")


@pytest.fixture
async def gateway(
    valkey_url: str, redis_scheduler: object, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(
        valkey_url,
        tmp_path,
        pools__specialist__adapter_slots=4,
        router__rules=[],
        adapters={},
        pools__specialist__adapters=[],
    ) as running:
        yield running


def add(gateway: GatewayUnderTest, name: str, rank: int = 8) -> str:
    """A version of its own content."""
    number = len(gateway.registry.versions()) + 1
    return gateway.registry.add(
        name, base_model="tiny", content=content(number, rank), source="folder:/nowhere", who="test"
    ).version.adapter_id


async def until_known(gateway: GatewayUnderTest) -> None:
    """As after the next look at the registry."""
    await gateway.gateway.current._look()


async def ask(gateway: GatewayUnderTest, model: str, **more: Any) -> tuple[int, dict[str, str], Any]:
    async with gateway.post({"model": model, "max_tokens": 2} | more) as response:
        return response.status, dict(response.headers), await response.json(content_type=None)


async def holders(gateway: GatewayUnderTest) -> dict[str, dict[str, str]]:
    load = await gateway.scheduler.pool_load("specialist")
    return {each.replica_id: dict(each.adapters) for each in load.replicas}


async def test_a_version_is_loaded_by_its_first_call(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom(load_s=0.2))
    version = add(gateway, "legal")
    await until_known(gateway)

    started_s = time.monotonic()
    status, headers, answer = await ask(gateway, version)
    cold_s = time.monotonic() - started_s
    started_s = time.monotonic()
    await ask(gateway, version)
    warm_s = time.monotonic() - started_s

    assert (status, headers["x-sprat-model"], answer["model"]) == (200, "legal@1", "legal@1")
    assert cold_s >= 0.2
    assert warm_s < 0.2


async def test_a_name_means_the_live_version(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom(load_s=0))
    first, second = add(gateway, "legal"), add(gateway, "legal")
    await until_known(gateway)
    assert (await ask(gateway, "legal"))[0] == 404

    gateway.registry.move(first, AdapterLife.LIVE, who="test")
    await until_known(gateway)
    assert (await ask(gateway, "legal"))[1]["x-sprat-model"] == first

    gateway.registry.move(second, AdapterLife.LIVE, who="test")
    await until_known(gateway)
    assert (await ask(gateway, "legal"))[1]["x-sprat-model"] == second
    assert (await ask(gateway, first))[1]["x-sprat-model"] == first

    gateway.registry.rollback("legal", who="test")
    gateway.registry.move(second, AdapterLife.RETIRED, who="test")
    await until_known(gateway)
    assert (await ask(gateway, "legal"))[1]["x-sprat-model"] == first
    assert (await ask(gateway, second))[0] == 404


async def test_a_rank_above_the_pool_is_not_offered(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom())
    version = add(gateway, "wide", rank=64)
    await until_known(gateway)

    status, _, answer = await ask(gateway, version)

    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_calls_go_where_the_adapter_is_also_when_it_is_idle(gateway: GatewayUnderTest) -> None:
    for number in range(4):
        await gateway.add_engine("specialist", f"s{number}", adapters=AdapterRoom())
    version = add(gateway, "legal")
    await until_known(gateway)
    home = (await ask(gateway, version))[1]["x-sprat-replica"]
    await asyncio.sleep(0.7)  # a heartbeat without a call

    replicas = {(await ask(gateway, version))[1]["x-sprat-replica"] for _ in range(20)}

    assert replicas == {home}
    assert [name for name, held in (await holders(gateway)).items() if version in held] == [home]


async def test_calls_that_meet_a_load_wait_for_it(gateway: GatewayUnderTest) -> None:
    engine = await gateway.add_engine("specialist", "s1", cap=16, adapters=AdapterRoom(load_s=0.3))
    version = add(gateway, "legal")
    await until_known(gateway)

    answers = await asyncio.gather(*(ask(gateway, version) for _ in range(10)))

    assert {status for status, _, _ in answers} == {200}
    assert engine.residency is not None
    assert engine.residency.loads == 1


async def test_more_adapters_than_room_queue_and_none_fails(gateway: GatewayUnderTest) -> None:
    engine = await gateway.add_engine("specialist", "s1", cap=16, adapters=AdapterRoom(places=2))
    versions = [add(gateway, f"task{number}") for number in range(6)]
    await until_known(gateway)

    answers = await asyncio.gather(*(ask(gateway, version) for version in versions * 3))

    assert {status for status, _, _ in answers} == {200}
    assert engine.residency is not None
    held = [name for name, state in engine.residency.states() if state == "loaded"]
    assert len(held) <= 2


async def test_a_replica_that_cannot_load_it_is_passed_over(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom(broken={"legal@1"}))
    await gateway.add_engine("specialist", "s2", adapters=AdapterRoom())
    version = add(gateway, "legal")
    await until_known(gateway)

    answers = [await ask(gateway, version) for _ in range(6)]

    assert [status for status, _, _ in answers] == [200] * 6
    assert {headers["x-sprat-replica"] for _, headers, _ in answers} == {"s2"}
    # Calls without the adapter may go there as before.
    assert not gateway.gateway.context.suspects


async def test_an_adapter_that_nobody_can_load_is_a_clear_error(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom(broken={"legal@1"}))
    version = add(gateway, "legal")
    await until_known(gateway)

    status, _, answer = await ask(gateway, version)
    await asyncio.sleep(0.7)

    assert (status, answer["error"]["code"]) == (503, "adapter_not_loaded")
    assert "/nowhere" not in str(answer)
    load = await gateway.scheduler.pool_load("specialist")
    assert load.replicas[0].adapters == ((version, "failed"),)
    assert load.replicas[0].adapter_problems == ((version, "the store of legal@1 does not answer"),)
    assert (await ask(gateway, "tiny"))[0] == 200


async def test_streams_wait_for_the_adapter_too(gateway: GatewayUnderTest) -> None:
    await gateway.add_engine("specialist", "s1", adapters=AdapterRoom(load_s=0.1))
    version = add(gateway, "legal")
    await until_known(gateway)

    async with gateway.post({"model": version, "max_tokens": 3, "stream": True}) as response:
        text = (await response.read()).decode()

    assert response.headers["x-sprat-model"] == version
    assert "[DONE]" in text


async def test_models_are_listed(gateway: GatewayUnderTest) -> None:
    version = add(gateway, "legal")
    await until_known(gateway)

    async with gateway.session.get(
        gateway.url + "/models", headers={"authorization": f"Bearer {gateway.key}"}
    ) as response:
        names = [each["id"] for each in (await response.json())["data"]]

    assert version in names
