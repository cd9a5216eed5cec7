"""The controller's tick on a real Valkey and a real store: what it observes, and what replicas read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterContent
from cluster.clock import ManualClock
from cluster.scheduler.desired_sets import DesiredSets
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.store import open_store, sqlite_url
from cluster.store.adapters import Adapters
from cluster.types import ReplicaPhase, ReplicaState
from deployments.controller.adapter_tick import AdapterTick
from tests.configs import config_of, simulated
from tests.conftest import SchedulerUnderTest, patient_client

pytestmark = pytest.mark.contract


@dataclass
class Given:
    """A fleet of heartbeats, and the controllers that look at it."""

    scheduler: RedisScheduler
    desired: DesiredSets
    registry: Adapters
    clock: ManualClock

    def controller(self, name: str = "first") -> AdapterTick:
        config = config_of(
            simulated(
                adapters={},
                router__rules=[],
                pools__specialist__adapters=[],
                pools__specialist__adapter_slots=2,
                pools__specialist__host_adapters=4,
            )
        )
        return AdapterTick(config, self.scheduler, self.registry, self.desired, clock=self.clock, name=name)

    def add(self, name: str, rank: int = 8) -> str:
        number = len(self.registry.versions()) + 1
        content = AdapterContent(rank, ("q_proj",), 1000, f"{number:064x}")
        return self.registry.add(
            name, base_model="tiny", content=content, source="folder:/nowhere", who="test"
        ).version.adapter_id

    async def beat(self, replica_id: str, **changes: object) -> ReplicaState:
        state = ReplicaState(
            replica_id=replica_id,
            pool="specialist",
            phase=ReplicaPhase.READY,
            address="127.0.0.1:1",
            epoch=1,
            max_concurrency=4,
        )
        state = replace(state, **changes)  # type: ignore[arg-type]
        await self.scheduler.heartbeat(state)
        return state

    async def shall_hold(self, adapter: str, *replicas: str) -> list[str]:
        """Those of the replicas that shall hold it."""
        return [name for name in replicas if adapter in (await self.desired.read(name) or ())]


@pytest.fixture
async def given(redis_scheduler: SchedulerUnderTest, valkey_url: str, tmp_path: Path) -> AsyncIterator[Given]:
    assert isinstance(redis_scheduler.scheduler, RedisScheduler)
    desired = DesiredSets(patient_client(valkey_url))
    store = open_store(sqlite_url(tmp_path / "store.sqlite"))
    yield Given(redis_scheduler.scheduler, desired, Adapters(store), ManualClock())
    await desired.close()


async def test_what_is_asked_for_is_placed(given: Given) -> None:
    asked, idle = given.add("asked"), given.add("idle")
    await given.beat("s1")
    await given.beat("s2")
    controller = given.controller()
    await controller.run()

    await given.beat("s1", adapters=((asked, "disk"),), adapter_uses=((asked, 50, 5000),))
    given.clock.advance(2000)
    await controller.run()

    assert len(await given.shall_hold(asked, "s1", "s2")) >= 1
    assert await given.shall_hold(idle, "s1", "s2") == []


async def test_nothing_moves_when_nothing_changes(given: Given) -> None:
    versions = [given.add(f"task{number}") for number in range(3)]
    uses = tuple((version, 20, 2000) for version in versions)
    controller = given.controller()
    await given.beat("s1")
    await controller.run()
    await given.beat("s1", adapter_uses=uses, adapters=tuple((each, "loaded") for each in versions[:2]))
    given.clock.advance(2000)
    first = await controller.run()
    await given.beat("s1", adapter_uses=uses, adapters=tuple((each, "loaded") for each in versions[:2]))
    given.clock.advance(2000)
    second = await controller.run()

    assert first is not None
    assert second is not None
    assert second.desired == first.desired
    assert second.changes == ()


async def test_what_a_lost_replica_held_is_placed_again(given: Given) -> None:
    version = given.add("legal")
    controller = given.controller()
    await given.beat("s1")
    await controller.run()
    lost = await given.beat("s1", adapters=((version, "loaded"),), adapter_uses=((version, 50, 5000),))
    given.clock.advance(2000)
    await controller.run()
    assert await given.shall_hold(version, "s1") == ["s1"]

    await given.scheduler.deregister(lost)
    await given.beat("s2")
    given.clock.advance(2000)
    placement = await controller.run()

    assert await given.shall_hold(version, "s2") == ["s2"]
    assert placement is not None
    assert [(each.replica_id, each.why) for each in placement.changes if each.enters] == [("s2", "moved")]


async def test_a_draining_replica_shall_hold_nothing(given: Given) -> None:
    version = given.add("legal")
    controller = given.controller()
    for calls in (0, 50):
        await given.beat("s1", adapters=((version, "loaded"),), adapter_uses=((version, calls, 5000),))
        given.clock.advance(2000)
        await controller.run()
    await given.beat("s1", phase=ReplicaPhase.DRAINING, adapters=((version, "loaded"),))
    await given.beat("s2")
    given.clock.advance(2000)
    await controller.run()

    assert await given.desired.read("s1") == ()
    assert await given.shall_hold(version, "s2") == ["s2"]


async def test_a_retired_version_leaves(given: Given) -> None:
    version = given.add("legal")
    controller = given.controller()
    await given.beat("s1", adapters=((version, "loaded"),), adapter_uses=((version, 50, 5000),))
    await controller.run()
    given.registry.move(version, AdapterLife.RETIRED, who="test")
    given.clock.advance(2000)
    await controller.run()

    assert await given.desired.read("s1") == ()


async def test_a_replica_that_counts_anew_is_not_misread(given: Given) -> None:
    """Cumulative counts start again with a new epoch; what was counted before is not counted twice."""
    version = given.add("legal")
    controller = given.controller()
    await given.beat("s1")
    await controller.run()
    for epoch, calls in ((1, 10), (2, 3)):
        given.clock.advance(1000)
        await given.beat("s1", epoch=epoch, adapter_uses=((version, calls, calls * 10),))
        await controller.run()

    assert controller._demand.calls[version] == pytest.approx(13, rel=0.1)


async def test_a_controller_that_takes_over_keeps_what_was_wanted(given: Given) -> None:
    version = given.add("legal")
    first = given.controller("same")
    await given.beat("s1")
    await first.run()
    await given.beat("s1", adapters=((version, "loaded"),), adapter_uses=((version, 900, 9000),))
    given.clock.advance(2000)
    await first.run()
    second = given.controller("same")
    given.clock.advance(2000)
    await second.run()

    assert await given.shall_hold(version, "s1") == ["s1"]
    assert second._demand.calls == {}, "it does not know when those calls came"


async def test_two_controllers_at_once(given: Given) -> None:
    given.add("legal")
    await given.beat("s1")
    first, second = given.controller("first"), given.controller("second")

    assert await first.run() is not None
    assert await second.run() is None
    assert (await given.desired.report())["controller"] == "first"
    assert await first.run() is not None


async def test_an_operator_wants_copies(given: Given) -> None:
    version = given.add("legal")
    for name in ("s1", "s2", "s3"):
        await given.beat(name)
    given.registry.set_copies(version, 2, who="test")
    await given.controller().run()

    assert len(await given.shall_hold(version, "s1", "s2", "s3")) == 2
