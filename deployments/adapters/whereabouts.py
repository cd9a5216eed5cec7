"""Which replica holds which adapters, and which it shall hold: as the replica directory in Redis says."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.clock import SystemClock
from cluster.config import ClusterConfig
from cluster.errors import SchedulerUnavailable
from cluster.scheduler.desired_sets import DesiredSets
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import ReplicaState
from deployments.state_folder import StateFolder


@dataclass(frozen=True, slots=True)
class ReplicaAdapters:
    """`shall_hold` None: no controller has said yet."""

    replica: ReplicaState
    shall_hold: tuple[str, ...] | None

    def state_of(self, adapter_id: str) -> tuple[str, str]:
        """State and, where it failed, why: `absent` for one that is not there and need not be, `wanted` for
        one that is not there yet."""
        problems = dict(self.replica.adapter_problems)
        state = dict(self.replica.adapters).get(adapter_id)
        if state is None:
            state = "wanted" if adapter_id in (self.shall_hold or ()) else "absent"
        return state, problems.get(adapter_id, "")


async def whereabouts(state: StateFolder) -> list[ReplicaAdapters] | None:
    """None where no cluster runs, or its Redis does not answer."""
    supervisor = state.read_supervisor()
    if supervisor is None or "redis_url" not in supervisor:
        return None
    config = ClusterConfig.model_validate(supervisor["running"])
    scheduler = RedisScheduler(connect(supervisor["redis_url"]), SystemClock())
    desired = DesiredSets(connect(supervisor["redis_url"]))
    try:
        loads = [await scheduler.pool_load(pool) for pool in config.pools]
        return [
            ReplicaAdapters(replica, await desired.read(replica.replica_id))
            for load in loads
            for replica in load.replicas
        ]
    except SchedulerUnavailable:
        return None
    finally:
        await desired.close()
        await scheduler.close()
