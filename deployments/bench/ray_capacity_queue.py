"""The rival: Ray Serve 2.60 with its own capacity-queue router, on a real local Ray.

A central actor hands out one token per free slot; the router of the calling process takes a token, sends the
request to the token's replica and gives the token back when the answer is there. When all slots are taken the
call for a token waits inside the actor, first come, first served, up to a timeout; then the router backs off
and asks again, as the last in line. There are no classes, no tenants, no deadlines and no bound: it never
refuses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from deployments.bench.arrivals import Arrival, Fleet
from deployments.bench.overload import Outcome
from deployments.ray_cluster import OBJECT_STORE_BYTES, ray_environment
from deployments.serve_address import keep_serve_on_node_address
from deployments.state_folder import StateFolder

APP = "overload"
QUEUE_ACTOR = "capacity_queue"
QUEUE_CONCURRENCY = 10_000
"""Calls that the actor takes at a time. A waiter is such a call: with Ray's default of 1000 no token can come
back once 1000 wait, and everything stands still until one of them times out."""
WARM_CALLS = 30


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How long the actor lets a call wait for a token, and when it takes back a token it never got back."""

    acquire_timeout_s: float
    token_ttl_s: float | None


PATIENT = TokenSettings(acquire_timeout_s=30.0, token_ttl_s=None)
"""As in an example of Ray's documentation: longer than a run, so the order holds. No holder of a token dies
here; and with a time to live the actor of 2.60 notes each token that was waited for twice, takes one of the
two back while the work still runs, and the replica refuses what is then handed out too much."""
IMPATIENT = TokenSettings(acquire_timeout_s=0.5, token_ttl_s=5.0)
"""As in Ray's own router benchmark, which never has more requests than slots. Under overload the order is a
lottery: who asks again at the right moment wins, urgent or not, and slots idle while everybody backs off."""


class SleepingReplica:
    """The slots: Serve lets `max_ongoing_requests` calls in at a time."""

    def __init__(self) -> None:
        keep_serve_on_node_address()

    async def __call__(self, service_s: float) -> tuple[float, float]:
        """When the work began and ended, by this process's `time.monotonic()`."""
        started_s = time.monotonic()
        await asyncio.sleep(service_s)
        return started_s, time.monotonic()


class RayCapacityQueue:
    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._calls = 0
        self._idle_call_ms: float | None = None

    async def warm_up(self) -> None:
        """The first calls find the actor and fill caches."""
        taken_ms = []
        for _ in range(WARM_CALLS):
            began_s = time.monotonic()
            await self._call(0.0)
            taken_ms.append((time.monotonic() - began_s) * 1000)
        self._idle_call_ms = statistics.median(taken_ms)

    async def run(self, arrival: Arrival, _start_by_s: float, /) -> Outcome:
        return await self._call(arrival.service_s)

    async def _call(self, service_s: float) -> Outcome:
        self._calls += 1
        started_s, finished_s = await self._handle.remote(service_s)
        return Outcome(started_s, finished_s)

    async def details(self) -> dict[str, Any]:
        """`idle_call_ms` is the median of calls one by one, for no work. Acquires above calls are retries:
        after a timeout, or because a replica refused (which leaks a token)."""
        import ray
        from ray.serve._private.constants import SERVE_NAMESPACE

        (name,) = [
            each["name"]
            for each in ray.util.list_named_actors(all_namespaces=True)
            if each["name"].endswith(f"::{QUEUE_ACTOR}")
        ]
        stats = await ray.get_actor(name, namespace=SERVE_NAMESPACE).get_stats.remote()
        return {
            "idle_call_ms": self._idle_call_ms,
            "calls": self._calls,
            "acquires": stats.total_acquires,
            "acquire_timeouts": stats.total_timeouts,
            "most_waiting": stats.max_waiters_seen,
        }


@asynccontextmanager
async def ray_capacity_queue(
    fleet: Fleet, settings: TokenSettings = PATIENT
) -> AsyncIterator[RayCapacityQueue]:
    # Ray prints its own remarks to standard output, where the caller's JSON belongs.
    with redirect_stdout(sys.stderr), _local_ray():
        queue = RayCapacityQueue(_deploy(fleet, settings))
        await queue.warm_up()
        yield queue


def _deploy(fleet: Fleet, settings: TokenSettings) -> Any:
    """Blocks until the replicas run."""
    from ray import serve
    from ray.serve.config import DeploymentActorConfig, RequestRouterConfig
    from ray.serve.experimental.capacity_queue import CapacityQueue

    serve.start(proxy_location="Disabled")
    application = (
        serve.deployment(SleepingReplica)
        .options(
            num_replicas=fleet.replicas,
            max_ongoing_requests=fleet.slots_per_replica,
            ray_actor_options={"num_cpus": 0},
            graceful_shutdown_timeout_s=1,
            graceful_shutdown_wait_loop_s=0.1,
            logging_config={"enable_access_log": False},
            request_router_config=RequestRouterConfig(
                request_router_class="ray.serve.experimental.capacity_queue_router:CapacityQueueRouter",
                request_router_kwargs={"capacity_queue_actor_name": QUEUE_ACTOR},
            ),
            deployment_actors=[
                DeploymentActorConfig(
                    name=QUEUE_ACTOR,
                    actor_class=CapacityQueue,
                    init_kwargs=asdict(settings),
                    actor_options={"num_cpus": 0, "max_concurrency": QUEUE_CONCURRENCY},
                )
            ],
        )
        .bind()
    )
    return serve.run(application, name=APP, route_prefix=None)


@contextmanager
def _local_ray() -> Iterator[None]:
    """A Ray of its own on loopback, with token authentication, as the supervisor starts it; gone afterwards.

    Once per process: Ray keeps the first token it has read.
    """
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as folder:
        state = StateFolder(Path(folder))
        state.make()
        state.secrets()
        state.make_runtime()
        os.environ |= ray_environment(state)  # before Ray is imported, which reads it

        import ray
        from ray import serve

        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(state.ray_folder),
                _node_ip_address="127.0.0.1",
            )
            ours = psutil.Process().children(recursive=True)
            try:
                yield
            finally:
                serve.shutdown()
                ray.shutdown()
                # They end a moment later and write into the folder until then.
                for process in psutil.wait_procs(ours, timeout=10)[1]:
                    process.kill()
        finally:
            state.remove_runtime()
