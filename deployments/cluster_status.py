"""What runs now: the supervisor's view of Ray, and the scheduler's own books."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.clock import SystemClock
from cluster.config import ClusterConfig
from cluster.cost import pool_price, usd
from cluster.errors import SchedulerUnavailable
from cluster.scheduler.pool_demand import said_targets
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import CLASSES
from cluster.types import BudgetState, PoolLoad, ReplicaPhase, Spend
from deployments.state_folder import StateFolder
from deployments.version import version

OBSERVATION_TOO_OLD_S = 15.0


async def cluster_status(state: StateFolder) -> dict[str, Any]:
    """The fields of COMMANDS.md and more. A cluster that does not run has `ready: false` and no pools."""
    supervisor = state.read_supervisor()
    observed = state.read_observed()
    status: dict[str, Any] = {
        "version": version(),
        "ready": False,
        "phase": observed.get("phase", "starting") if supervisor else "down",
        "problem": observed.get("problem", ""),
        "endpoint": (supervisor or {}).get("endpoint"),
        "nodes": observed.get("nodes", []),
        "pools": [],
        "queue": {"interactive": 0, "normal": 0, "batch": 0},
        "redis": {"state": "down", "kind": "none"},
        "spend": {"today_usd": 0.0, "saved_usd": 0.0, "calls": 0},
    }
    if supervisor is None or "redis_url" not in supervisor:
        return status
    config = ClusterConfig.model_validate(supervisor["running"])
    status["redis"]["kind"] = "embedded" if supervisor["redis_url"].startswith("unix://") else "external"
    client = connect(supervisor["redis_url"])
    scheduler = RedisScheduler(client, SystemClock())
    targets: dict[str, dict[str, Any]] = {}
    try:
        loads = {name: await scheduler.pool_load(name) for name in config.pools}
        spend = await scheduler.spend_today()
        targets = await said_targets(client, list(config.pools))
        status["redis"]["state"] = "ok"
    except SchedulerUnavailable as error:
        loads, spend = {name: PoolLoad() for name in config.pools}, Spend()
        status["redis"] |= {"state": "unavailable", "problem": str(error)}
    finally:
        await scheduler.close()
    status["pools"] = [
        _pool(config, name, loads[name], observed, targets.get(name, {})) for name in config.pools
    ]
    gateway = observed.get("serve", {}).get("gateway", {})
    status["gateway"] = {"serve": gateway.get("status", "unknown"), "problem": _serve_problem(gateway)}
    status["ready"] = "RUNNING" in status["gateway"]["serve"] and all(
        pool["ready"] >= config.pools[pool["name"]].min_replicas for pool in status["pools"]
    )
    status["problem"] = status["problem"] or status["gateway"]["problem"]
    status["spend"] = {
        "today_usd": usd(spend.spent_micro_usd),
        "saved_usd": usd(spend.saved_micro_usd),
        "calls": spend.calls,
        "calls_by_tier": dict(spend.calls_by_tier),
        "refused": dict(spend.refused),
        "lost_calls": spend.lost_calls,
        "overrun_usd": usd(spend.overrun_micro_usd),
    }
    waiting = [sum(counts) for counts in zip(*(load.waiting for load in loads.values()), strict=True)]
    status["queue"] = dict(zip(CLASSES, waiting, strict=True))
    if time.time() - observed.get("observed_s", 0) > OBSERVATION_TOO_OLD_S:
        status["problem"] = (
            status["problem"] or "the supervisor has not looked for a while; see sprat logs supervisor"
        )
    return status


async def live_budgets(
    state: StateFolder, names: Sequence[tuple[str, str]]
) -> tuple[BudgetState, ...] | None:
    """What the running scheduler knows of each owner and window; None where none answers."""
    supervisor = state.read_supervisor()
    if supervisor is None or "redis_url" not in supervisor:
        return None
    scheduler = RedisScheduler(connect(supervisor["redis_url"]), SystemClock())
    try:
        return await scheduler.budget_states(names)
    except SchedulerUnavailable:
        return None
    finally:
        await scheduler.close()


def _pool(
    config: ClusterConfig, name: str, load: PoolLoad, observed: dict[str, Any], said: dict[str, Any]
) -> dict[str, Any]:
    """`said`: what autoscaling decided last; empty where nobody decides."""
    pool = config.pools[name]
    target = said.get("replicas", pool.min_replicas)
    node = config.node_classes[pool.node_class]
    price = pool_price(pool, node)
    serve = observed.get("serve", {}).get(name, {})
    return {
        "name": name,
        "tier": pool.tier,
        "base_model": pool.base_model,
        "engine": pool.engine,
        "node_class": pool.node_class,
        "ready": sum(replica.phase is ReplicaPhase.READY for replica in load.replicas),
        "target": target,
        "asleep": target == 0 and not load.replicas,
        "scaling": said or {"reason": "fixed" if pool.min_replicas == pool.max_replicas else "unknown"},
        "leases": load.leases,
        "queue": dict(zip(CLASSES, load.waiting, strict=True)),
        "replicas": [replica.to_json() for replica in load.replicas],
        "serve": serve.get("status", "unknown"),
        "problem": observed.get("unplaceable", {}).get(name) or _serve_problem(serve),
        "price": {
            "source": "list price"
            if pool.engine == "upstream"
            else "declared node price / measured throughput",
            "prompt_usd_per_mtok": usd(price.prompt_micro_usd_per_mtok),
            "output_usd_per_mtok": usd(price.output_micro_usd_per_mtok),
            "node_usd_per_hour": node.paid_usd_per_hour,
        },
    }


def _serve_problem(serve: dict[str, Any]) -> str:
    return (
        serve.get("message", "")
        if "FAILED" in serve.get("status", "") or "UNHEALTHY" in serve.get("status", "")
        else ""
    )
