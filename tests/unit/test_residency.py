"""Adapters inside a replica, before an engine that only counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deployments.residency import residency as module
from deployments.residency.engine import AdapterNotLoaded
from deployments.residency.residency import AdapterResidency


class CountingEngine:
    """Says what was asked of it; fails where it is told to."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.loaded: list[str] = []
        self.most_at_once = 0
        self.refuses: set[str] = set()
        self.gate: asyncio.Event | None = None

    async def load(self, adapter_id: str, folder: Path) -> None:
        assert folder == Path("/adapters") / adapter_id
        self.log.append(f"+{adapter_id}")
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if adapter_id in self.refuses:
            raise AdapterNotLoaded(f"{adapter_id} is no adapter")
        self.loaded.append(adapter_id)
        self.most_at_once = max(self.most_at_once, len(self.loaded))

    async def unload(self, adapter_id: str) -> None:
        self.log.append(f"-{adapter_id}")
        self.loaded.remove(adapter_id)

    async def in_slots(self) -> frozenset[str]:
        return frozenset(self.loaded[-1:])


class HeldFiles:
    """Knows what must not leave the disk."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    async def folder_of(self, adapter_id: str) -> Path:
        await asyncio.sleep(0)
        self.held.add(adapter_id)
        return Path("/adapters") / adapter_id

    def release(self, adapter_id: str) -> None:
        self.held.discard(adapter_id)


class BrokenDisk(HeldFiles):
    async def folder_of(self, adapter_id: str) -> Path:
        raise OSError(f"no {adapter_id} here")


class Given:
    """A residency with its engine."""

    def __init__(self, room: int = 2, pinned: tuple[str, ...] = ()) -> None:
        self.engine = CountingEngine()
        self.changes = 0
        self.files = HeldFiles()
        self.residency = AdapterResidency(self.engine, self.files, room, pinned, self.changed)

    def changed(self) -> None:
        self.changes += 1

    async def call(self, adapter_id: str) -> None:
        async with self.residency.use(adapter_id):
            assert adapter_id in self.engine.loaded

    async def until_settled(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    @property
    def states(self) -> dict[str, str]:
        return dict(self.residency.states())


async def test_a_cold_adapter_is_loaded_once_for_all_that_wait() -> None:
    given = Given()

    await asyncio.gather(*(given.call("a@1") for _ in range(20)))

    assert given.engine.log == ["+a@1"]
    assert given.residency.uses()[0][:2] == ("a@1", 20)
    assert given.changes >= 2  # it begins, it is here


async def test_the_longest_unused_leaves() -> None:
    given = Given(room=2)
    for adapter in ("a@1", "b@1", "a@1", "c@1"):
        await given.call(adapter)

    assert given.engine.log == ["+a@1", "+b@1", "-b@1", "+c@1"]
    assert given.states == {"a@1": "loaded", "b@1": "disk", "c@1": "loaded"}
    assert given.files.held == {"a@1", "c@1"}


async def test_what_is_in_use_never_leaves_and_the_next_waits() -> None:
    given = Given(room=1)
    order: list[str] = []

    async def other() -> None:
        async with given.residency.use("b@1"):
            order.append("b runs")

    async with given.residency.use("a@1"):
        waiting = asyncio.create_task(other())
        await given.until_settled()
        assert given.engine.loaded == ["a@1"]
        order.append("a ends")
    await waiting

    assert order == ["a ends", "b runs"]
    assert given.engine.most_at_once == 1


async def test_pinned_adapters_stay() -> None:
    given = Given(room=2, pinned=("p@1",))
    await given.residency.hold(["p@1"])
    for adapter in ("a@1", "b@1", "c@1"):
        await given.call(adapter)

    assert sorted(given.engine.loaded) == ["c@1", "p@1"]


async def test_the_desired_set_comes_in_the_background_and_goes_last() -> None:
    given = Given(room=2)
    given.residency.want(["a@1"])
    await given.until_settled()
    await given.call("b@1")
    await given.call("c@1")

    assert sorted(given.engine.loaded) == ["a@1", "c@1"]
    assert given.residency.loads == 3


async def test_a_desired_adapter_makes_room_for_a_call_when_nothing_else_can() -> None:
    given = Given(room=1)
    given.residency.want(["a@1"])
    await given.until_settled()

    await given.call("b@1")

    assert given.engine.loaded == ["b@1"]


async def test_the_least_wanted_leaves_first() -> None:
    given = Given(room=2)
    given.residency.want(["a@1", "b@1"])
    await given.until_settled()
    await given.call("b@1")
    await given.call("a@1")  # used last, and wanted more

    await given.call("c@1")

    assert sorted(given.engine.loaded) == ["a@1", "c@1"]


async def test_the_background_never_takes_from_calls_or_from_what_is_desired() -> None:
    given = Given(room=1)
    async with given.residency.use("a@1"):
        given.residency.want(["b@1", "c@1"])
        await given.until_settled()

        assert given.engine.loaded == ["a@1"]
    given.residency.want(["b@1", "c@1"])
    await given.until_settled()

    assert given.engine.loaded == ["b@1"]  # c is the less wanted, and there is no room for both


async def test_a_call_that_joins_a_background_load_waits_for_room() -> None:
    given = Given(room=1)
    given.engine.gate = asyncio.Event()
    given.residency.want(["b@1"])
    await given.until_settled()
    calling = asyncio.create_task(given.call("c@1"))
    joining = asyncio.create_task(given.call("b@1"))
    await given.until_settled()
    given.engine.gate.set()

    await asyncio.wait_for(asyncio.gather(calling, joining), 5)

    assert given.engine.most_at_once == 1


async def test_a_client_that_leaves_does_not_end_the_load() -> None:
    given = Given()
    given.engine.gate = asyncio.Event()
    leaving = asyncio.create_task(given.call("a@1"))
    await given.until_settled()
    leaving.cancel()
    await given.until_settled()
    assert given.states == {"a@1": "loading"}
    given.engine.gate.set()
    await given.until_settled()

    assert given.states == {"a@1": "loaded"}
    await given.call("a@1")
    assert given.engine.log == ["+a@1"]


async def test_a_failure_is_told_and_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given()
    given.engine.refuses = {"a@1"}
    for _ in range(3):
        with pytest.raises(AdapterNotLoaded, match="a@1 is no adapter"):
            await given.call("a@1")

    assert given.engine.log == ["+a@1"]
    assert given.states == {"a@1": "failed"}
    assert given.residency.problems() == (("a@1", "a@1 is no adapter"),)

    monkeypatch.setattr(module, "RETRY_FAILED_S", 0.0)
    given.engine.refuses = set()
    await given.call("a@1")
    assert given.states == {"a@1": "loaded"}
    assert given.residency.problems() == ()


async def test_an_unexpected_error_is_a_failure_of_this_adapter_alone() -> None:
    given = Given()
    broken = AdapterResidency(given.engine, BrokenDisk(), 2, (), given.changed)
    with pytest.raises(AdapterNotLoaded, match="OSError"):
        async with broken.use("a@1"):
            pass
    assert broken.states() == (("a@1", "failed"),)


async def test_residency_is_what_the_engine_says() -> None:
    given = Given(room=3)
    for adapter in ("a@1", "b@1"):
        await given.call(adapter)

    await given.residency.look()

    assert given.states == {"a@1": "host", "b@1": "loaded"}


async def test_many_calls_of_many_adapters() -> None:
    """Whatever the order: never more than the room, every call runs with its adapter loaded."""
    given = Given(room=3, pinned=("p@1",))
    await given.residency.hold(["p@1"])
    names = [f"{letter}@1" for letter in "abcdefg"]

    async def user(number: int) -> None:
        for turn in range(20):
            name = names[(number * 5 + turn * 3) % len(names)]
            async with given.residency.use(name):
                await asyncio.sleep(0)
                assert name in given.engine.loaded

    given.residency.want(names[:2])
    await asyncio.wait_for(asyncio.gather(*(user(number) for number in range(9))), 30)

    assert given.engine.most_at_once <= 3
    assert "p@1" in given.engine.loaded
    assert sum(calls for _, calls, _ in given.residency.uses()) == 9 * 20
