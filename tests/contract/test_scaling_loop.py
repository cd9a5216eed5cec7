"""What stands between Ray Serve and the planner: quick, never an error, and never a guess without Redis."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.config import DeploymentConfig

from cluster.clock import SystemClock
from cluster.scheduler.pool_demand import said_targets
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import Placement
from deployments import autoscaling
from deployments.autoscaling import PoolSize, keep_target, replica_count
from deployments.runtime import Runtime
from tests.builders import PATIENT, admit_request, candidate
from tests.configs import config_of, simulated
from tests.conftest import patient_client

POOL = "specialist"


def runtime_at(redis_url: str, **changes: Any) -> Runtime:
    config = config_of(
        simulated(
            pools__specialist__replicas={"min": 0, "max": 3, "cold_start_s": 1},
            autoscale={"period_s": 0.05},
            **changes,
        )
    )
    return Runtime(
        config=config,
        redis_url=redis_url,
        store_url="sqlite:////tmp/none",
        journal_folder="",
        gateway_token="the-token-that-nobody-may-see",
    )


@pytest.fixture(autouse=True)
def loops_of_this_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They end soon after the test has asked them last."""
    monkeypatch.setattr(autoscaling, "_loops", {})
    monkeypatch.setattr(autoscaling, "UNASKED_S", 0.3)
    yield
    for thread in threading.enumerate():
        if thread.name == "scaling":
            thread.join(10)
            assert not thread.is_alive()


def asked(target: int) -> Any:
    """All that a policy looks at of Serve's context."""
    return SimpleNamespace(target_num_replicas=target)


def until_size(policy: PoolSize, current: int, size: int) -> None:
    deadline = time.monotonic() + 10
    while (found := policy(asked(current))) != (size, {}):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_number_of_replicas_is_not_for_serve_to_change() -> None:
    assert replica_count("reserve", runtime_at("redis://nowhere")) == {"num_replicas": 1}


def test_bounds_and_the_policy_survive_the_way_to_the_controller_and_show_no_secret() -> None:
    options = replica_count(POOL, runtime_at("redis://:hidden@nowhere"))
    deployed = DeploymentConfig(autoscaling_config=options["autoscaling_config"])

    arrived = DeploymentConfig.from_proto_bytes(deployed.to_proto_bytes()).autoscaling_config

    assert arrived is not None
    assert (arrived.min_replicas, arrived.max_replicas) == (0, 3)
    assert isinstance(arrived.policy.get_policy(), PoolSize)
    shown = str(deployed.autoscaling_config.model_dump())  # type: ignore[union-attr]
    assert "hidden" not in shown
    assert "nobody-may-see" not in shown


def test_where_serve_has_only_the_name_nothing_changes() -> None:
    assert keep_target(asked(2)) == (2, {})


@pytest.mark.contract
def test_a_waiting_call_wakes_the_pool_and_the_decision_is_told(valkey_url: str) -> None:
    async def begin_to_wait() -> None:
        client = patient_client(valkey_url)
        await client.flushall()
        scheduler = RedisScheduler(client, SystemClock())
        await scheduler.admit(
            admit_request(
                candidates=(candidate(pool=POOL),), placements=(Placement(wake_ms=1_000),), queue=PATIENT
            )
        )
        await scheduler.close()

    async def told() -> dict[str, Any]:
        client = patient_client(valkey_url)
        try:
            return await said_targets(client, [POOL, "reserve"])
        finally:
            await client.aclose()

    asyncio.run(begin_to_wait())
    policy = PoolSize(POOL, runtime_at(valkey_url))

    until_size(policy, 0, 1)

    found = asyncio.run(told())
    assert (found[POOL]["replicas"], found[POOL]["reason"]) == (1, "woken")
    assert found[POOL]["demand"].keys() >= {"busy", "forecast", "backlog"}
    assert found["reserve"]["reason"] == "fixed"


@pytest.mark.contract
def test_the_pools_of_a_process_share_one_loop_until_the_configuration_changes(valkey_url: str) -> None:
    first, second = PoolSize(POOL, runtime_at(valkey_url)), PoolSize(POOL, runtime_at(valkey_url))
    other = PoolSize(POOL, runtime_at(valkey_url, name="other"))
    for policy in (first, second, other):
        policy(asked(0))

    assert first._loop is second._loop
    assert other._loop is not first._loop


@pytest.mark.contract
def test_serve_can_save_a_policy_that_is_in_use(valkey_url: str) -> None:
    policy = PoolSize(POOL, runtime_at(valkey_url))
    policy(asked(0))

    saved = pickle.loads(pickle.dumps(policy))

    assert saved(asked(2)) == (2, {})


def test_without_redis_every_pool_stays_as_it_is_and_serve_does_not_wait(tmp_path: Any) -> None:
    policy = PoolSize(POOL, runtime_at(f"unix://{tmp_path}/none.sock"))
    policy(asked(2))
    time.sleep(0.3)

    began_s = time.monotonic()
    answers = {policy(asked(2))[0] for _ in range(1_000)}

    assert answers == {2}
    assert time.monotonic() - began_s < 0.5


@pytest.mark.contract
def test_a_loop_that_nobody_asks_ends_and_the_next_question_begins_another(valkey_url: str) -> None:
    policy = PoolSize(POOL, runtime_at(valkey_url))
    policy(asked(0))
    loop = policy._loop
    assert loop is not None
    deadline = time.monotonic() + 10
    while not loop.is_over:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    policy(asked(0))

    assert policy._loop is not loop
