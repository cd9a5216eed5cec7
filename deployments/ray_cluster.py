"""The Ray that a cluster runs on: one of the supervisor's own on loopback, or one that is there already.

Of a Ray that it joined the supervisor starts and stops nothing but its own Serve applications.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Protocol

from cluster.errors import StartError
from cluster.types import NodeState
from deployments.state_folder import StateFolder

logger = logging.getLogger("sprat.supervisor")

NAMESPACE = "sprat"
OBJECT_STORE_BYTES = 200 * 2**20
"""Small: request and answer bodies travel by HTTP, never through Ray's object store."""


class RayCluster(Protocol):
    """What the supervisor asks of a Ray."""

    joined: bool

    def start(self) -> str:
        """Connects this process; returns the address. Raises StartError."""

    def stop(self, applications: Sequence[str]) -> None:
        """Removes these Serve applications, the gateway first, and disconnects."""


class OwnRay:
    """A head node on loopback with token authentication, in this process's care."""

    joined = False

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def start(self) -> str:
        """`ray.init` and not `ray start`: the latter always opens a Ray client server as well, and resolves
        loopback to the machine's public address."""
        os.environ |= ray_environment(self._state)
        shutil.rmtree(self._state.ray_folder, ignore_errors=True)

        import ray

        context = ray.init(
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(self._state.ray_folder),
            _node_ip_address="127.0.0.1",
        )
        return str(context.address_info["gcs_address"])

    def stop(self, applications: Sequence[str]) -> None:
        if "ray" not in sys.modules:
            return
        import ray
        from ray import serve

        if not ray.is_initialized():
            return
        try:
            _delete(applications[:1])  # the gateway; the pools end together, which is faster
            serve.shutdown()
        except Exception:  # a Ray that is broken already must not keep the rest from stopping
            logger.exception("Serve did not shut down in order")
        ray.shutdown()


class JoinedRay:
    """A running Ray cluster of which this machine is a node."""

    joined = True

    def __init__(self, address: str) -> None:
        self._address = address

    def start(self) -> str:
        import ray

        try:
            context = ray.init(
                address=self._address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises many kinds, none of them says what to do
            raise StartError(
                f"cannot join the Ray cluster at {self._address}: {_first_line(error)}. Run "
                "`sprat up --address` on a node of that cluster (where `ray status` works), with its token "
                "in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and RAY_AUTH_MODE=token."
            ) from error
        return str(context.address_info["gcs_address"])

    def stop(self, applications: Sequence[str]) -> None:
        import ray

        if not ray.is_initialized():
            return
        try:
            _delete(applications)
        except Exception:
            logger.exception("not all applications were removed; `serve status` shows what is left")
        ray.shutdown()


def remove_applications(address: str, applications: Sequence[str]) -> None:
    """What a supervisor that was killed left behind on a Ray that it had joined. Raises StartError."""
    ray_cluster = JoinedRay(address)
    ray_cluster.start()
    ray_cluster.stop(applications)


def running_applications() -> set[str]:
    """Names of all Serve applications, whoever deployed them."""
    from ray import serve

    return set(serve.status().applications)


def this_node() -> str:
    """The Ray node id of the machine on which this process is."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def hosts(nodes: Collection[NodeState]) -> tuple[str, ...]:
    """Their addresses: several raylets may share one machine."""
    return tuple(dict.fromkeys(node.address for node in nodes))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _delete(applications: Sequence[str]) -> None:
    """One after the other: the gateway comes first, so that its calls end and are settled while the engines
    are still there."""
    from ray import serve

    for name in applications:
        if name in serve.status().applications:
            serve.delete(name)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def ray_environment(state: StateFolder) -> dict[str, str]:
    """For every process that joins the local Ray (THREATS.md 4)."""
    return {
        # Keep to loopback, as Ray does on laptops with other systems; else it takes the public address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(state.ray_token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "SERVE_SLOW_STARTUP_WARNING_S": "600",
        # Two cores run everything on a laptop; a busy node is not a dead node.
        "RAY_health_check_failure_threshold": "20",
    }
