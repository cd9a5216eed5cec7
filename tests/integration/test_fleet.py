"""Two raylets labelled as different node classes: pinning, healing, draining, and what cannot be placed."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest

from deployments import app
from tests.configs import config_of, simulated
from tests.integration.conftest import Fleet

pytestmark = pytest.mark.integration


def client(fleet: Fleet, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=fleet.url, api_key=fleet.key, max_retries=0, **options)


def pid_of(fleet: Fleet, replica_id: str) -> int:
    found = [each.pid for each in fleet.replicas("specialist") if each.replica_id == replica_id]
    assert found, f"{replica_id} is gone"
    return found[0]


def until_no_lease(fleet: Fleet, within_s: float = 3.0) -> None:
    deadline = time.monotonic() + within_s
    while fleet.leases():
        assert time.monotonic() < deadline, "a lease is left"
        time.sleep(0.05)


HELLO: list[Any] = [{"role": "user", "content": "hello there, how are you?"}]


def test_each_pool_runs_where_it_is_pinned(fleet: Fleet) -> None:
    assert {each.node for each in fleet.replicas("specialist")} == {"cheap"}
    assert {each.node for each in fleet.replicas("reserve")} == {"big"}


def test_a_pool_without_a_matching_node_says_so(fleet: Fleet) -> None:
    config = config_of(
        simulated(
            node_classes__big__label_selector={"sprat.node": "gigantic"}, node_classes__big__fallbacks=[]
        )
    )

    reasons = app.unplaceable(config, app.ray_nodes())

    assert set(reasons) == {"reserve"}
    assert "{sprat.node=gigantic}" in reasons["reserve"]
    assert "{sprat.node=big}" in reasons["reserve"], "it names the nodes that are there"


def test_calls_are_routed_by_cost_through_the_official_client(fleet: Fleet) -> None:
    with client(fleet) as openai_client:
        narrow = openai_client.chat.completions.with_raw_response.create(
            model="auto", messages=HELLO, max_tokens=5, metadata={"task": "classify"}
        )
        hard = openai_client.chat.completions.with_raw_response.create(
            model="auto", messages=HELLO, max_tokens=5
        )

    assert (narrow.headers["x-sprat-tier"], hard.headers["x-sprat-tier"]) == ("small", "large")
    assert float(narrow.headers["x-sprat-saved-usd"]) > 0
    answer = narrow.parse()
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_both_replicas_get_work_and_every_lease_ends(fleet: Fleet) -> None:
    def call(_: int) -> str:
        with client(fleet) as openai_client:
            raw = openai_client.chat.completions.with_raw_response.create(
                model="small", messages=HELLO, max_tokens=20
            )
            return raw.headers["x-sprat-replica"]

    with ThreadPoolExecutor(6) as pool:
        used = list(pool.map(call, range(12)))

    assert len(set(used)) == 2
    until_no_lease(fleet)


def test_a_replica_killed_in_mid_stream_gives_a_clean_error_and_the_next_call_works(fleet: Fleet) -> None:
    fleet.wait_for("specialist", 2)
    with client(fleet) as openai_client:
        raw = openai_client.chat.completions.with_raw_response.create(
            model="small", messages=HELLO, max_tokens=200, stream=True
        )
        victim = raw.headers["x-sprat-replica"]
        stream = raw.parse()
        next(iter(stream))
        os.kill(pid_of(fleet, victim), signal.SIGKILL)
        killed_s = time.monotonic()
        with pytest.raises(openai.APIError, match="engine"):
            for _ in stream:
                pass
        noticed_s = time.monotonic() - killed_s
        after = openai_client.chat.completions.with_raw_response.create(
            model="small", messages=HELLO, max_tokens=3
        )

    assert noticed_s < 5
    assert after.headers["x-sprat-replica"] != victim
    until_no_lease(fleet)
    healed = fleet.wait_for("specialist", 2, without=victim)
    assert {each.node for each in healed} == {"cheap"}, "the new replica is pinned like the old one"


def test_a_replica_killed_before_the_first_byte_is_retried_elsewhere(fleet: Fleet) -> None:
    fleet.wait_for("specialist", 2)
    body = {"model": "small", "messages": HELLO, "max_tokens": 100}

    def call() -> tuple[int, str]:
        request = urllib.request.Request(
            fleet.url + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {fleet.key}"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()
            return response.status, response.headers["x-sprat-replica"]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call)
        deadline = time.monotonic() + 5
        busy: list[str] = []
        while not busy:
            assert time.monotonic() < deadline
            busy = [each.replica_id for each in fleet.replicas("specialist") if each.load_requests]
        os.kill(pid_of(fleet, busy[0]), signal.SIGKILL)
        status, answered_by = answer.result()

    assert status == 200
    assert answered_by != busy[0]
    until_no_lease(fleet)
    fleet.wait_for("specialist", 2, without=busy[0])


def test_two_gateways_share_one_port(fleet: Fleet) -> None:
    """The kernel spreads connections over them; both know every replica and every key."""
    assert len(fleet.gateways()) == 2
    for _ in range(20):
        with client(fleet) as openai_client:
            openai_client.chat.completions.create(model="small", messages=HELLO, max_tokens=1)


def test_the_route_through_serves_proxy(fleet: Fleet) -> None:
    with openai.OpenAI(base_url=fleet.proxy_url, api_key=fleet.key, max_retries=0) as by_proxy:
        whole = by_proxy.chat.completions.with_raw_response.create(
            model="small", messages=HELLO, max_tokens=3
        )
        chunks = list(
            by_proxy.chat.completions.create(model="small", messages=HELLO, max_tokens=50, stream=True)
        )
        stream = by_proxy.chat.completions.create(model="small", messages=HELLO, max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    assert whole.headers["x-sprat-tier"] == "small"
    assert len([each for each in chunks if each.choices and each.choices[0].delta.content]) == 50
    until_no_lease(fleet)
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=fleet.proxy_url, api_key="sk-wrong", max_retries=0) as stranger,
    ):
        stranger.models.list()


def test_a_client_that_leaves_frees_its_lease(fleet: Fleet) -> None:
    with client(fleet) as openai_client:
        stream = openai_client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=200, stream=True
        )
        next(iter(stream))
        assert fleet.leases() == 1
        stream.close()

    until_no_lease(fleet)


def test_a_gateway_killed_in_mid_call_is_reaped_and_comes_back(fleet: Fleet) -> None:
    """Its leases are not renewed; the other gateway ends them."""
    with client(fleet) as openai_client:
        stream = openai_client.chat.completions.create(
            model="small", messages=HELLO, max_tokens=200, stream=True
        )
        next(iter(stream))
        port = urlsplit(fleet.url).port
        before = fleet.gateways()
        busy = next(
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == "ESTABLISHED" and each.pid in before and each.laddr.port == port
        )
        os.kill(busy, signal.SIGKILL)
        with pytest.raises((openai.APIError, Exception)):
            for _ in stream:
                pass

    with client(fleet) as openai_client:
        assert openai_client.models.list().data, "the other gateway answers"
    until_no_lease(fleet, within_s=40)
    deadline = time.monotonic() + 30
    while len(fleet.gateways() - {busy}) < 2:
        assert time.monotonic() < deadline, "Serve did not start the gateway again"
        time.sleep(0.5)
