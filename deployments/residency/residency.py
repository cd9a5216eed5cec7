"""Which adapters a replica holds. They come by two ways: the controller's desired set, fetched and loaded in
the background, and calls for an adapter that is not here, which wait for it.

What leaves when room is needed: adapters without a running call that are not pinned, those outside the
desired set first (the longest unused of them), then the least wanted. Nothing leaves before: an adapter that
nobody wants any more may be asked for again, and costs nothing where it is. vLLM would evict by itself, in
the middle of a step and without a word, once more than `max_cpu_loras` are registered: this class never lets
it come so far.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.errors import SpratError
from deployments.residency.engine import AdapterEngine, AdapterFiles, AdapterNotLoaded

logger = logging.getLogger("ray.serve")

RETRY_FAILED_S = 5.0
"""How long an adapter that could not be loaded is refused without another try."""

REMEMBERED = 1024
"""Adapters that are not here any more, of which uses and states are still told."""


class AdapterState(StrEnum):
    """Where an adapter is (the glossary's residency): `loaded` in a slot of the engine, `host` in the
    replica's main memory, `disk` on its node."""

    LOADED = "loaded"
    HOST = "host"
    LOADING = "loading"
    DISK = "disk"
    FAILED = "failed"


@dataclass(slots=True)
class _Held:
    """An adapter that is here or on its way. `calls` run with it, `waiters` want to."""

    loading: asyncio.Task[None] | None
    calls: int = 0
    waiters: int = 0
    is_ready: bool = False
    is_in_slot: bool = False

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.calls and not self.waiters


@dataclass(slots=True)
class _Uses:
    """Since the replica started."""

    calls: int = 0
    busy_s: float = 0.0


class AdapterResidency:
    """Lives in the engine's event loop; `states`, `problems` and `uses` may be read from any thread."""

    def __init__(
        self,
        engine: AdapterEngine,
        files: AdapterFiles,
        room: int,
        pinned: Collection[str],
        changed: Callable[[], None],
    ) -> None:
        """`room`: adapters in main memory, those in slots included. `changed` is told when one comes, goes or
        fails."""
        self._engine = engine
        self._files = files
        self._room = room
        self._pinned = frozenset(pinned)
        self._changed = changed
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._on_disk: OrderedDict[str, None] = OrderedDict()
        self._failed: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._uses: OrderedDict[str, _Uses] = OrderedDict()
        self._desired: tuple[str, ...] = ()
        self._entering = asyncio.Lock()  # one at a time: each load holds up a step of the engine
        self._freed = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None
        self._loads = 0

    # Calls.

    @asynccontextmanager
    async def use(self, adapter_id: str) -> AsyncIterator[None]:
        """While a call runs with it. Loads it where it is not here: that call, and those that come meanwhile,
        wait. Raises AdapterNotLoaded."""
        held = await self._take(adapter_id)
        started_s = time.monotonic()
        try:
            yield
        finally:
            held.calls -= 1
            uses = self._uses_of(adapter_id)
            uses.calls += 1
            uses.busy_s += time.monotonic() - started_s
            if held.is_idle:
                self._freed.set()

    async def _take(self, adapter_id: str) -> _Held:
        while True:
            held = self._held.get(adapter_id)
            if held is None:
                self._refuse_what_just_failed(adapter_id)
                held = self._begin(adapter_id, may_wait=True)
            if held.is_ready:
                held.calls += 1
                self._held.move_to_end(adapter_id)
                return held
            held.waiters += 1
            try:
                # The load goes on for the others when this call's client leaves.
                await asyncio.shield(_present(held.loading))
            finally:
                held.waiters -= 1
                if held.is_idle:
                    self._freed.set()

    # The controller.

    def want(self, adapters: Sequence[str]) -> None:
        """The desired set, the most wanted first."""
        if tuple(adapters) == self._desired and (self._filling is None or not self._filling.done()):
            return
        self._desired = tuple(adapters)
        if self._filling is not None:
            self._filling.cancel()
        self._filling = asyncio.create_task(self._fill())

    async def hold(self, adapters: Sequence[str]) -> None:
        """Load these before the first call. Raises AdapterNotLoaded."""
        for adapter_id in adapters:
            await _present(self._begin(adapter_id, may_wait=False).loading)

    async def close(self) -> None:
        tasks = [each.loading for each in self._held.values() if each.loading is not None]
        if self._filling is not None:
            tasks.append(self._filling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Telling.

    async def keep_looking(self, period_s: float = 1.0) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("the engine does not say which adapters lie in its slots")
            await asyncio.sleep(period_s)

    async def look(self) -> None:
        """Ask the engine which adapters lie in its slots: true also of those that no call uses."""
        in_slots = await self._engine.in_slots()
        for adapter_id, held in self._held.items():
            held.is_in_slot = adapter_id in in_slots

    def states(self) -> tuple[tuple[str, str], ...]:
        """Of each adapter that this replica knows of: an AdapterState."""
        here = {adapter_id: _state_of(held) for adapter_id, held in list(self._held.items())}
        away = dict.fromkeys(list(self._on_disk), AdapterState.DISK)
        failed = dict.fromkeys(list(self._failed), AdapterState.FAILED)
        return tuple((name, state.value) for name, state in (away | failed | here).items())

    def problems(self) -> tuple[tuple[str, str], ...]:
        """Of each adapter that failed: the sentence that says why."""
        return tuple((adapter_id, why) for adapter_id, (why, _) in list(self._failed.items()))

    def uses(self) -> tuple[tuple[str, int, int], ...]:
        """Adapter, calls that ended, their time in ms; since the replica started."""
        return tuple(
            (adapter_id, uses.calls, round(uses.busy_s * 1000))
            for adapter_id, uses in list(self._uses.items())
        )

    @property
    def loads(self) -> int:
        """Since the replica started."""
        return self._loads

    # Loading.

    def _begin(self, adapter_id: str, *, may_wait: bool) -> _Held:
        """`may_wait`: until a call ends, where all room is in use."""
        held = self._held.get(adapter_id)
        if held is None:
            held = _Held(loading=None)
            self._held[adapter_id] = held
            held.loading = asyncio.create_task(self._load(adapter_id, held, may_wait=may_wait))
            held.loading.add_done_callback(_is_told_by_the_state)
            self._changed()
        return held

    async def _load(self, adapter_id: str, held: _Held, *, may_wait: bool) -> None:
        try:
            folder = await self._files.folder_of(adapter_id)
            self._on_disk[adapter_id] = None
            _keep_newest(self._on_disk)
            async with self._entering:
                await self._make_room(held, may_wait=may_wait)
                await self._engine.load(adapter_id, folder)
            held.is_ready = held.is_in_slot = True
            self._loads += 1
            self._failed.pop(adapter_id, None)
        except NoRoom:
            raise
        except Exception as error:
            why = error.message if isinstance(error, SpratError) else f"{type(error).__name__} while loading"
            logger.warning("adapter %s cannot be loaded: %s", adapter_id, error)
            self._failed[adapter_id] = (why, time.monotonic())
            _keep_newest(self._failed)
            raise AdapterNotLoaded(why) from error
        finally:
            held.loading = None
            if not held.is_ready:
                self._held.pop(adapter_id, None)
                self._files.release(adapter_id)
            self._changed()

    async def _make_room(self, newcomer: _Held, *, may_wait: bool) -> None:
        """Raises NoRoom."""
        while sum(each.is_ready for each in self._held.values()) >= self._room:
            for_a_call = may_wait or newcomer.waiters > 0
            victim = self._victim(but_desired=not for_a_call)
            if victim is not None:
                del self._held[victim]
                await self._engine.unload(victim)
                self._files.release(victim)
            elif for_a_call:
                self._freed.clear()
                await self._freed.wait()
            else:
                raise NoRoom("All room for adapters is in use.")

    def _victim(self, *, but_desired: bool) -> str | None:
        """The adapter that leaves. What is desired leaves only for a call, and last."""
        idle = [name for name, held in self._held.items() if held.is_idle and name not in self._pinned]
        rank = {name: number for number, name in enumerate(self._desired)}
        for name in idle:
            if name not in rank:
                return name
        return max(idle, key=rank.__getitem__) if idle and not but_desired else None

    async def _fill(self) -> None:
        """Load what is desired and not here. What does not fit now is tried again with the next desired set:
        room comes only when calls end."""
        for adapter_id in self._desired:
            if adapter_id in self._held or self._has_just_failed(adapter_id):
                continue
            with suppress(AdapterNotLoaded):
                await asyncio.shield(_present(self._begin(adapter_id, may_wait=False).loading))

    # Small parts.

    def _refuse_what_just_failed(self, adapter_id: str) -> None:
        if self._has_just_failed(adapter_id):
            raise AdapterNotLoaded(self._failed[adapter_id][0])

    def _has_just_failed(self, adapter_id: str) -> bool:
        known = self._failed.get(adapter_id)
        return known is not None and time.monotonic() - known[1] < RETRY_FAILED_S

    def _uses_of(self, adapter_id: str) -> _Uses:
        uses = self._uses.setdefault(adapter_id, _Uses())
        self._uses.move_to_end(adapter_id)
        _keep_newest(self._uses)
        return uses


class NoRoom(AdapterNotLoaded):
    """Every adapter that is here is in use, pinned or desired."""


def _state_of(held: _Held) -> AdapterState:
    if not held.is_ready:
        return AdapterState.LOADING
    return AdapterState.LOADED if held.is_in_slot else AdapterState.HOST


def _present(task: asyncio.Task[None] | None) -> asyncio.Future[None]:
    """A load that has ended already is as good as one that ends now."""
    if task is not None:
        return task
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def _is_told_by_the_state(task: asyncio.Task[None]) -> None:
    """Not everybody who began a load is still there when it fails."""
    if not task.cancelled():
        task.exception()


def _keep_newest(known: OrderedDict[str, Any]) -> None:
    while len(known) > REMEMBERED:
        known.popitem(last=False)
