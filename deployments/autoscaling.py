"""The function that Ray Serve asks how many replicas a pool shall have.

Serve's controller asks it ten times a second and waits for the answer, so it only looks up what a thread
beside it has decided: that reads Redis once per `autoscale.period_s` for all pools, and asks
`cluster.planner`. Whatever goes wrong there, pools stay as large as they are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import asdict
from typing import Any

from ray import cloudpickle
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.errors import SchedulerUnavailable
from cluster.planner.autoscale import PlannerState, PoolTarget, plan
from cluster.planner.observation import FleetFacts, PoolObservation
from cluster.scheduler.pool_demand import read_demand, say_targets
from deployments.runtime import Runtime

logger = logging.getLogger("ray.serve")

STALE_PERIODS = 5
"""A decision that is older than this is none."""

UNASKED_S = 20.0
"""A loop that Serve has not asked for so long belongs to a cluster that is gone, or to an older
configuration."""


def replica_count(pool: str, runtime: Runtime) -> dict[str, Any]:
    """Deployment options of Serve: a number of replicas, or bounds and who decides between them."""
    replicas = runtime.config.pools[pool].replicas
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    policy = AutoscalingPolicy(policy_function=f"{__name__}:keep_target")
    # What Serve shows of a policy is its name and keyword arguments; the runtime has secrets, so it travels
    # as the constructor's arguments of a replica do. The loop below is one for all pools: by reference, not
    # by value.
    policy.set_serialized_policy_def(cloudpickle.dumps(PoolSize(pool, runtime)))
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            # Ours are in the planner.
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=policy,
        )
    }


def keep_target(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Where Serve lost what decides."""
    return context.target_num_replicas, {}


class PoolSize:
    """The policy function of one pool."""

    def __init__(self, pool: str, runtime: Runtime) -> None:
        self._pool = pool
        self._runtime = runtime
        self._loop: ScalingLoop | None = None

    def __reduce__(self) -> tuple[type[PoolSize], tuple[str, Runtime]]:
        """Serve saves the policies in use with its state; the loop stays where it runs."""
        return PoolSize, (self._pool, self._runtime)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        if self._loop is None or self._loop.is_over:
            self._loop = _loop_of(self._runtime)
        return self._loop.size(self._pool, context.target_num_replicas), {}


class ScalingLoop:
    """Decides for all pools of a cluster. `size` is called by Serve's controller, the rest runs in a thread
    of its own."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._fleet = FleetFacts.of(runtime.config)
        self._settings = runtime.config.autoscale
        self._state = PlannerState()
        self._fixed = {
            name: pool.replicas
            for name, pool in runtime.config.pools.items()
            if isinstance(pool.replicas, int)
        }
        self._current: dict[str, int] = {}
        self._asked_s: dict[str, float] = {}
        self._targets: dict[str, PoolTarget] = {}
        self._began_s = self._decided_s = time.monotonic()
        self._away = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True, name="scaling")
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def size(self, pool: str, current: int) -> int:
        """How many replicas the pool shall have; `current` where nobody knows better."""
        self._current[pool] = current  # before it counts as asked for: the thread looks from there
        now_s = self._asked_s[pool] = time.monotonic()
        target = self._targets.get(pool)
        if target is None or now_s - self._decided_s > STALE_PERIODS * self._settings.period_s:
            return current
        return target.replicas

    def _sizes(self) -> dict[str, int]:
        """Of the pools that are this loop's: fixed ones, and those that Serve asks it for."""
        since_s = time.monotonic() - UNASKED_S
        asked = [name for name, at_s in list(self._asked_s.items()) if at_s >= since_s]
        return self._fixed | {name: self._current[name] for name in asked}

    async def _run(self) -> None:
        client = self.runtime.redis()
        while time.monotonic() - max([self._began_s, *list(self._asked_s.values())]) < UNASKED_S:
            began_s = time.monotonic()
            try:
                await self._round(client)
                self._away = False
            except SchedulerUnavailable as error:
                if not self._away:
                    logger.warning("pools stay as large as they are: %s", error)
                self._away = True
            except Exception:  # a loop that ends silently would keep all pools as they are for ever
                logger.exception("pools stay as large as they are")
            await asyncio.sleep(max(0.05, self._settings.period_s - (time.monotonic() - began_s)))
        await client.aclose()

    async def _round(self, client: Any) -> None:
        current = self._sizes()
        demand = await read_demand(client, list(current))
        observed = [
            PoolObservation.of(name, size, demand[name], self._settings) for name, size in current.items()
        ]
        targets, self._state = plan(self._fleet, observed, self._state, time.monotonic())
        for target in targets.values():
            if target.replicas != current[target.pool]:
                _log_change(target, current[target.pool])
        self._targets, self._decided_s = targets, time.monotonic()
        await say_targets(client, {name: asdict(target) for name, target in targets.items()})


def _log_change(target: PoolTarget, before: int) -> None:
    demand = target.demand
    logger.info(
        "pool %s: %d -> %d replicas, %s (busy %.2f, forecast %.2f, backlog %.2f, attainment %.3f)",
        *(target.pool, before, target.replicas, target.reason),
        *(demand.busy, demand.forecast, demand.backlog, target.attainment),
    )


_loops: dict[str, ScalingLoop] = {}
"""Of this process: Serve's controller makes one policy object per pool."""


def _loop_of(runtime: Runtime) -> ScalingLoop:
    loop = _loops.get(runtime.redis_url)
    if loop is None or loop.is_over or loop.runtime.config != runtime.config:
        loop = _loops[runtime.redis_url] = ScalingLoop(runtime)
    return loop
