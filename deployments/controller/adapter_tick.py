"""Which adapters every replica shall hold: replica directory and registry → `place_adapters` → Redis."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cluster.adapters.version import AdapterVersion
from cluster.clock import Clock
from cluster.config import ClusterConfig
from cluster.placement.adapters import (
    AdapterNeed,
    AdapterPlacement,
    Held,
    PlacementSettings,
    ReplicaPlaces,
    place_adapters,
)
from cluster.placement.demand import NO_DEMAND, Demand, Forgetting, Uses, observe, remembered_calls_for
from cluster.scheduler.desired_sets import DesiredSets
from cluster.scheduler.scheduler import Scheduler
from cluster.store.adapters import Adapters
from cluster.types import ReplicaPhase, ReplicaState

logger = logging.getLogger("ray.serve")

HERE = {"loaded": Held.LOADED, "host": Held.HOST, "loading": Held.LOADING}
PLACED = (ReplicaPhase.READY, ReplicaPhase.DRAINING)
CHANGES_SHOWN = 50


class AdapterTick:
    """Keeps from one tick to the next what was desired, and how often each adapter was asked for."""

    def __init__(
        self,
        config: ClusterConfig,
        scheduler: Scheduler,
        registry: Adapters,
        desired: DesiredSets,
        *,
        clock: Clock,
        name: str,
    ) -> None:
        """`name` tells this controller from another one."""
        self._config = config
        self._scheduler = scheduler
        self._registry = registry
        self._desired = desired
        self._clock = clock
        self._name = name
        self._pools = [pool for pool, settings in config.pools.items() if settings.adapter_slots]
        self._settings = PlacementSettings()
        self._demand = Demand()
        self._counted: dict[str, tuple[int, dict[str, Uses]]] | None = None
        self._previous: Mapping[str, Sequence[str]] = {}
        self._versions: list[AdapterVersion] = []
        self._copies: dict[str, int] = {}
        self._revision = -1
        self._changes: list[dict[str, object]] = []

    async def run(self) -> AdapterPlacement | None:
        """None: another controller is in charge. Raises SchedulerUnavailable, StoreUnavailable."""
        await self._read_registry()
        if self._counted is None:
            # What the controller before this one wanted stays wanted until calls say otherwise.
            self._previous = (await self._desired.report()).get("desired", {})
        loads = [await self._scheduler.pool_load(pool) for pool in self._pools]
        states = [each for load in loads for each in load.replicas if each.phase in PLACED]
        self._count(states)
        placement = place_adapters(self._needs(), map(self._places, states), self._previous, self._settings)
        if not await self._desired.write(self._name, placement.desired, self._report(placement)):
            return None
        for change in placement.changes:
            logger.info(
                "%s %s %s: %s",
                change.replica_id,
                "shall hold" if change.enters else "need not hold",
                change.adapter_id,
                change.why,
            )
        self._previous = placement.desired
        return placement

    async def _read_registry(self) -> None:
        revision = await asyncio.to_thread(self._registry.revision)
        if revision != self._revision:
            self._versions = await asyncio.to_thread(self._registry.usable)
            self._copies = await asyncio.to_thread(self._registry.copies)
            self._revision = revision

    def _count(self, states: Sequence[ReplicaState]) -> None:
        """What replicas say of their calls counts up since they started; a new epoch starts from nothing.
        The first look of a controller only learns where the counts stand: it does not know when the calls
        came."""
        is_first, known_counts = self._counted is None, self._counted or {}
        news: dict[str, Uses] = defaultdict(lambda: Uses(0, 0.0))
        counted: dict[str, tuple[int, dict[str, Uses]]] = {}
        for state in states:
            now = {adapter: Uses(calls, busy_ms / 1000) for adapter, calls, busy_ms in state.adapter_uses}
            epoch, before = known_counts.get(state.replica_id, (state.epoch, now if is_first else {}))
            if epoch != state.epoch:
                before = {}
            for adapter, uses in now.items():
                # An adapter that the replica had forgotten meanwhile starts from nothing as well.
                known = before.get(adapter, Uses(0, 0.0))
                calls, busy_s = uses.calls - known.calls, uses.busy_s - known.busy_s
                if calls < 0:
                    calls, busy_s = uses.calls, uses.busy_s
                if calls:
                    news[adapter] = Uses(news[adapter].calls + calls, news[adapter].busy_s + max(0.0, busy_s))
            counted[state.replica_id] = (state.epoch, now)
        self._counted = counted
        places = sum(self._config.pools[state.pool].adapters_on_host for state in states)
        self._demand = observe(
            self._demand, news, self._clock.now_ms(), Forgetting(remembered_calls_for(places))
        )

    def _needs(self) -> list[AdapterNeed]:
        demand = self._demand.per_adapter()
        declared = [
            AdapterNeed(adapter, settings.base_model, settings.rank, demand.get(adapter, NO_DEMAND))
            for adapter, settings in self._config.adapters.items()
        ]
        registered = [
            AdapterNeed(
                each.adapter_id,
                each.base_model,
                each.rank,
                demand.get(each.adapter_id, NO_DEMAND),
                self._copies.get(each.adapter_id),
            )
            for each in self._versions
        ]
        return [*declared, *registered]

    def _places(self, state: ReplicaState) -> ReplicaPlaces:
        pool = self._config.pools[state.pool]
        return ReplicaPlaces(
            replica_id=state.replica_id,
            base_model=pool.base_model,
            places=pool.adapters_on_host,
            max_rank=pool.max_rank,
            calls_at_once=state.max_concurrency,
            pinned=tuple(pool.adapters),
            held={adapter: HERE[where] for adapter, where in state.adapters if where in HERE},
            drains=state.phase is ReplicaPhase.DRAINING,
        )

    def _report(self, placement: AdapterPlacement) -> dict[str, object]:
        """For `sprat adapters place`."""
        now_ms = self._clock.now_ms()
        self._changes += [
            {
                "at_ms": now_ms,
                "replica": change.replica_id,
                "adapter": change.adapter_id,
                "enters": change.enters,
                "why": change.why.value,
                "loads": change.loads,
            }
            for change in placement.changes
        ]
        self._changes = self._changes[-CHANGES_SHOWN:]
        return {
            "at_ms": now_ms,
            "controller": self._name,
            "desired": {replica: list(adapters) for replica, adapters in placement.desired.items()},
            "unreachable": list(placement.unreachable),
            "changes": self._changes,
        }
