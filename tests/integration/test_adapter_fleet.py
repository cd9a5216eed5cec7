"""Adapters of the registry on several raylets: pinned, loaded by calls, placed, lost, placed again, drained.

One story in the order of the file; `make prove-fleet` writes what happened when to tests/results/fleet.json.
Simulated engines, real Ray, real files of adapters.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.scheduler.desired_sets import DesiredSets
from cluster.store import open_store
from cluster.store.adapters import Adapters
from deployments.adapters.checking import check_source
from deployments.drain import drain_node, node_named
from deployments.free_port import free_port
from tests.configs import config_of, simulated
from tests.integration.conftest import Fleet, deployed
from tests.lora_files import write_adapter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

POOL = "specialist"
LOG = "SPRAT_FLEET_LOG"
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20}


@dataclass
class Story:
    """What happened, and when, since it began."""

    began_s: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, what: str, **more: Any) -> None:
        self.events.append({"at_s": round(time.monotonic() - self.began_s, 1), "what": what, **more})
        print(self.events[-1])

    def write(self, path: str) -> None:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        report = {"date": date, "commit": commit, "engines": "simulated", "events": self.events}
        Path(path).write_text(json.dumps(report, indent=1) + "\n")


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    told = Story()
    yield told
    if os.environ.get(LOG):
        told.write(os.environ[LOG])


@pytest.fixture(scope="module")
def spare(ray_cluster: Any, lost_nodes_noticed: None) -> Iterator[dict[str, Any]]:
    """Nodes that tests add, by name; what is left at the end goes."""
    nodes: dict[str, Any] = {"spare": ray_cluster.add_node(labels={"sprat.node": "spare"}, **NODE)}
    yield nodes
    for node in nodes.values():
        if node in ray_cluster.list_all_nodes():
            ray_cluster.remove_node(node)


@pytest.fixture(scope="module")
def fleet(ray_cluster: Any, spare: dict[str, Any], valkey_url: str, short_folder: Path) -> Iterator[Fleet]:
    """A pool of two replicas, each as large as a node: one on `cheap`, the other on its fallback."""
    config = config_of(
        simulated(
            gateway__port=free_port(),
            adapters={},
            router__rules=[],
            pools__specialist__adapters=[],
            pools__specialist__adapter_slots=8,
            pools__specialist__replicas=2,
            pools__specialist__cpus=2,
            node_classes__cheap__fallbacks=[{"sprat.node": "in(spare,spare2,spare3)"}],
            node_classes__big__fallbacks=[],
        )
    )
    with deployed(config, valkey_url, short_folder) as running:
        running.wait_for(POOL, 2)
        yield running


def registry(fleet: Fleet) -> Adapters:
    return Adapters(open_store(fleet.runtime.store_url))


@pytest.fixture(scope="module")
def versions(fleet: Fleet, short_folder: Path) -> list[str]:
    """Six adapters with files of their own."""
    found = []
    for number in range(6):
        source = f"folder:{write_adapter(short_folder / f'task{number}', seed=number)}"
        checked, pinned = check_source(source, "tiny", fleet.runtime.config)
        added = registry(fleet).add(
            f"task{number}", base_model="tiny", content=checked.content, source=str(pinned), who="test"
        )
        found.append(added.version.adapter_id)
    return found


@dataclass
class Load:
    """Calls for the adapters in turn, ten per second, whether or not those before were answered."""

    fleet: Fleet
    versions: list[str]
    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, over: threading.Event) -> None:
        names = itertools.cycle(self.versions)
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as calls:
            while not over.is_set():
                calls.create_task(self._call(session, next(names)))
                await asyncio.sleep(0.1)

    async def _call(self, session: aiohttp.ClientSession, model: str) -> None:
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {self.fleet.key}"}
        async with session.post(f"{self.fleet.url}/chat/completions", json=body, headers=headers) as answer:
            text = await answer.text()
            self.statuses.append(answer.status)
            if answer.status != 200 or json.loads(text)["model"] != model:
                self.failures.append(f"{answer.status} {text[:200]}")


@contextmanager
def under_load(fleet: Fleet, versions: list[str]) -> Iterator[Load]:
    load, over = Load(fleet, versions), threading.Event()
    runner = threading.Thread(target=lambda: asyncio.run(load.run(over)))
    runner.start()
    try:
        yield load
    finally:
        over.set()
        runner.join()


def until(seen: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def held(fleet: Fleet) -> dict[str, set[str]]:
    """Node → adapters that its replica holds."""
    return {each.node: set(each.held_adapters) for each in fleet.replicas(POOL)}


def desired(fleet: Fleet) -> dict[str, list[str]]:
    async def ask() -> dict[str, list[str]]:
        sets = DesiredSets(fleet.runtime.redis())
        try:
            return dict((await sets.report()).get("desired", {}))
        finally:
            await sets.close()

    return asyncio.run(ask())


def known(fleet: Fleet, version: str) -> bool:
    async def ask() -> bool:
        headers = {"authorization": f"Bearer {fleet.key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{fleet.url}/models", headers=headers) as answer,
        ):
            return version in {each["id"] for each in (await answer.json())["data"]}

    return asyncio.run(ask())


def test_replicas_are_pinned(fleet: Fleet, story: Story) -> None:
    assert {each.node for each in fleet.replicas(POOL)} == {"cheap", "spare"}
    story.tell("pinned: one replica on its node class, one on the fallback", nodes=sorted(held(fleet)))


def test_calls_load_adapters_and_the_controller_adopts_them(
    fleet: Fleet, versions: list[str], story: Story
) -> None:
    until(lambda: known(fleet, versions[-1]), "the gateway knows the registry")
    with under_load(fleet, versions) as load:
        until(lambda: set().union(*held(fleet).values()) == set(versions), "all are loaded")
        wanted = set(versions)
        until(
            lambda: {name for each in desired(fleet).values() for name in each} == wanted, "all are desired"
        )

    assert load.failures == []
    story.tell("calls loaded all adapters, the controller desires them", calls=len(load.statuses))


def test_what_a_lost_node_held_is_held_elsewhere(
    fleet: Fleet, versions: list[str], spare: dict[str, Any], ray_cluster: Any, story: Story
) -> None:
    with under_load(fleet, versions) as load:
        time.sleep(1)
        ray_cluster.remove_node(spare.pop("spare"), allow_graceful=False)
        story.tell("killed: the raylet of the second replica")
        until(lambda: held(fleet).keys() == {"cheap"}, "its replica leaves the directory")
        story.tell("the replica has left the directory")
        until(lambda: held(fleet)["cheap"] == set(versions), "the other one holds all")
        story.tell("the other replica holds all adapters")

    assert load.failures == []
    story.tell("calls meanwhile", calls=len(load.statuses), failed=0)


def test_a_replica_that_comes_is_given_adapters_before_any_call(
    fleet: Fleet, versions: list[str], spare: dict[str, Any], ray_cluster: Any, story: Story
) -> None:
    registry(fleet).set_copies(versions[0], 2, who="test")
    spare["spare2"] = ray_cluster.add_node(labels={"sprat.node": "spare2"}, **NODE)
    story.tell("scaled: a node came, and two copies of one adapter are wanted")
    until(lambda: versions[0] in held(fleet).get("spare2", ()), "the new replica holds it without a call")
    story.tell("the new replica holds it, before any call")


def test_a_drained_node_is_left_without_losing_a_call(
    fleet: Fleet, versions: list[str], spare: dict[str, Any], ray_cluster: Any, story: Story
) -> None:
    import ray

    spare["spare3"] = ray_cluster.add_node(labels={"sprat.node": "spare3"}, **NODE)
    nodes = [{"id": each["NodeID"], "labels": each["Labels"]} for each in ray.nodes() if each["Alive"]]
    address = ray.get_runtime_context().gcs_address
    with under_load(fleet, versions) as load:
        drain_node(address, node_named("spare2", nodes), 600, os.environ)
        story.tell("drained: the second replica's node")
        until(lambda: held(fleet).keys() == {"cheap", "spare3"}, "the replica moved")
        story.tell("its replacement is ready on another node")
        until(lambda: versions[0] in held(fleet)["spare3"], "placed again")
        story.tell("the adapter with two copies is placed there")

    assert load.failures == []
    story.tell("calls meanwhile", calls=len(load.statuses), failed=0)
