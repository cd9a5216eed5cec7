"""Ray Serve asks our policy how large a pool shall be: sleep, wake, swing, drain. Simulated engines, minutes
squeezed into seconds."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.scheduler.pool_demand import said_targets
from cluster.scheduler.redis_connection import connect
from deployments.drain import drain_node, node_named
from deployments.free_port import free_port
from tests.configs import config_of, simulated
from tests.integration.conftest import Fleet, deployed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

POOL = "specialist"
TOKENS = 20
SERVICE_S = 0.5
SLOTS = 4


@pytest.fixture(scope="module")
def elastic(lost_nodes_noticed: None, valkey_url: str, short_folder: Path) -> Iterator[Fleet]:
    """One gateway; a small tier of 0 to 3 replicas anywhere, a large one of 1."""
    config = config_of(
        simulated(
            gateway__port=free_port(),
            pools__specialist__replicas={"min": 0, "max": 3, "cold_start_s": 8},
            pools__specialist__adapters=[],
            pools__specialist__cpus=1,
            pools__specialist__max_concurrency=SLOTS,
            pools__specialist__simulated={
                "base_ttft_ms": 1,
                "prefill_tokens_per_s": 1e6,
                "decode_tokens_per_s": TOKENS / SERVICE_S,
            },
            # Nobody has this label at first.
            node_classes__cheap__label_selector={"sprat.node": "spot"},
            router__rules=[],
            adapters={},
            autoscale={
                "window_s": 3,
                "up_delay_s": 1,
                "down_delay_s": 6,
                "idle_s": 5,
                "period_s": 0.5,
                "wait_slo_s": {"interactive": 1, "normal": 2, "batch": 10},
            },
        )
    )
    with deployed(config, valkey_url, short_folder) as running:
        running.wait_for("reserve", 1)
        yield running


def said(fleet: Fleet) -> dict[str, Any]:
    """What the policy decided last for the pool; nothing before it was asked."""

    async def ask() -> dict[str, Any]:
        client = connect(fleet.runtime.redis_url)
        try:
            return (await said_targets(client, [POOL])).get(POOL, {})
        finally:
            await client.aclose()

    return asyncio.run(ask())


def until(seen: Callable[[], bool], what: str, within_s: float = 60.0) -> float:
    """How long it took."""
    began_s = time.monotonic()
    while not seen():
        assert time.monotonic() - began_s < within_s, what
        time.sleep(0.1)
    return time.monotonic() - began_s


@dataclass
class Load:
    """An open loop: calls leave when they should, whether or not the ones before were answered."""

    fleet: Fleet
    rate: Callable[[float], float]
    answers: list[tuple[int, str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as calls:
            began_s = time.monotonic()
            owed = 0.0
            last_s = 0.0
            while (now_s := time.monotonic() - began_s) < seconds:
                owed += self.rate(now_s) * (now_s - last_s)
                last_s = now_s
                while owed >= 1:
                    owed -= 1
                    calls.create_task(self._call(session))
                await asyncio.sleep(0.02)

    async def _call(self, session: aiohttp.ClientSession) -> None:
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
        began_s = time.monotonic()
        try:
            async with session.post(
                f"{self.fleet.url}/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {self.fleet.key}"},
            ) as response:
                text = await response.text()
                tier = response.headers.get("x-sprat-tier", "")
                self.answers.append((response.status, tier, time.monotonic() - began_s))
                if response.status != 200:
                    self.failures.append(f"{response.status} {text[:300]}")
        except aiohttp.ClientError as error:
            self.failures.append(repr(error))


def test_a_pool_that_sleeps_is_woken_by_a_call_which_waits_for_it(elastic: Fleet) -> None:
    until(lambda: said(elastic).get("reason") == "asleep", "the pool should sleep at first")
    assert elastic.replicas(POOL) == []

    load = Load(elastic, lambda _: 0.0)

    async def three_calls() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(load._call(session) for _ in range(3)))

    asyncio.run(three_calls())

    assert load.failures == []
    assert {(status, tier) for status, tier, _ in load.answers} == {(200, "small")}, (
        "and not by the large tier"
    )
    print("cold answers after", [round(took_s, 2) for *_, took_s in load.answers])
    until(lambda: said(elastic)["reason"] == "asleep", "idle for 5 s, it sleeps again")
    until(lambda: not elastic.replicas(POOL), "and its replica is gone")


def test_a_load_that_swings_takes_the_pool_up_once_and_down_once(elastic: Fleet) -> None:
    """No call fails on the way, and none goes to the large tier."""
    period_s, periods = 30.0, int(os.environ.get("SPRAT_SINE_PERIODS", "1"))
    sizes: list[tuple[float, int, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            target = said(elastic)
            if target:
                sizes.append((time.monotonic(), target["replicas"], len(elastic.replicas(POOL))))
            time.sleep(0.25)

    watcher = threading.Thread(target=watch)
    watcher.start()
    load = Load(elastic, lambda at_s: 8.0 - 7.5 * math.cos(2 * math.pi * at_s / period_s))
    try:
        load.run(period_s * periods)
    finally:
        over.set()
        watcher.join()

    targets = [target for _, target, _ in sizes]
    ups = [after > before for before, after in pairwise(targets) if after != before]
    turns = sum(before != after for before, after in pairwise(ups))
    took = sorted(took_s for *_, took_s in load.answers)
    print(f"{len(took)} calls, {turns} turns, p95 {took[int(len(took) * 0.95)]:.2f} s")
    assert load.failures == []
    assert {tier for _, tier, _ in load.answers} == {"small"}
    assert max(targets) >= 2, "it grew"
    assert max(ready for *_, ready in sizes) >= 2, "and the replicas came"
    assert turns <= 2 * periods


@pytest.fixture
def spot_node(elastic: Fleet, ray_cluster: Any) -> Iterator[Any]:
    """A node with room for one replica of the pool, which prefers it."""
    until(lambda: not elastic.replicas(POOL), "asleep again")
    node = ray_cluster.add_node(num_cpus=1, labels={"sprat.node": "spot"}, object_store_memory=80 * 2**20)
    yield node
    if node in ray_cluster.list_all_nodes():
        ray_cluster.remove_node(node)


@contextmanager
def under_load(fleet: Fleet, seconds: float) -> Iterator[Load]:
    """Enough for two replicas, one of them on the spot node."""
    load = Load(fleet, lambda _: 10.0)
    runner = threading.Thread(target=load.run, args=(seconds,))
    runner.start()
    try:
        until(lambda: len(fleet.replicas(POOL)) >= 2, "two replicas")
        assert "spot" in nodes_of(fleet)
        yield load
    finally:
        runner.join()


def nodes_of(fleet: Fleet) -> set[str]:
    return {each.node for each in fleet.replicas(POOL)}


def test_a_node_with_a_spot_notice_is_left_without_losing_a_call(elastic: Fleet, spot_node: Any) -> None:
    """Serve starts the replacement elsewhere before the replica drains."""
    import ray

    known = [{"id": each["NodeID"], "labels": each["Labels"]} for each in ray.nodes() if each["Alive"]]
    address = ray.get_runtime_context().gcs_address
    with under_load(elastic, 30.0) as load:
        drain_node(address, node_named("spot", known), 600, os.environ)
        moved_s = until(
            lambda: "spot" not in nodes_of(elastic) and len(elastic.replicas(POOL)) >= 2,
            "two replicas elsewhere",
        )

    print(f"moved after {moved_s:.1f} s, {len(load.answers)} calls")
    assert load.failures == []


def test_a_node_that_is_lost_is_replaced_and_its_calls_are_run_again(
    elastic: Fleet, spot_node: Any, ray_cluster: Any
) -> None:
    """None of them had an answer yet, so the other replica gives it."""
    with under_load(elastic, 30.0) as load:
        ray_cluster.remove_node(spot_node, allow_graceful=False)
        healed_s = until(
            lambda: "spot" not in nodes_of(elastic) and len(elastic.replicas(POOL)) >= 2,
            "two replicas elsewhere",
        )

    print(f"healed after {healed_s:.1f} s, {len(load.answers)} calls")
    assert load.failures == []
