"""One detached process per state folder: owns Valkey and the local Ray, deploys, watches, stops both.
Of a Ray that it joined (`--address`) it owns its applications only.

Its standard input is a pipe from the `sprat up` that started it. Until that process writes
`keep`, the end of the pipe means that it crashed or was interrupted, and everything stops: a start
that did not finish leaves nothing running.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from cluster.config import ClusterConfig, load_config
from cluster.errors import SpratError, StartError
from cluster.store import open_store
from cluster.types import NodeState
from deployments.joining import check_names, check_shared, gateway_address
from deployments.node_facts import check_nodes
from deployments.ray_cluster import JoinedRay, OwnRay, RayCluster, running_applications, this_node
from deployments.runtime import Runtime
from deployments.state_folder import Secrets, StateFolder
from deployments.store_location import store_url
from deployments.valkey import start_server, stop_server

logger = logging.getLogger("sprat.supervisor")

KEEP = b"keep\n"
OBSERVE_PERIOD_S = 1.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Stopped(BaseException):
    """Raised by the signal handler; no `except Exception` of a library may swallow it."""


class Supervisor:
    def __init__(
        self, state: StateFolder, config_path: Path, weights: dict[str, str], ray_cluster: RayCluster
    ) -> None:
        self._state = state
        self._ray = ray_cluster
        self._applications: tuple[str, ...] = ()
        """In Serve by our doing."""
        self._config_path = config_path
        self._config: ClusterConfig = load_config(config_path, os.environ)
        self._weights = weights
        self._secrets: Secrets = state.secrets()
        self._valkey: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._kept = False
        self._phase = "starting"
        self._problem = ""

    def run(self) -> int:
        """Returns the exit status: 0 after an ordered stop."""
        self._listen_for_signals()
        try:
            self._start()
            while not self._stopping:
                self._check_starter()
                self._check_children()
                self._observe()
                time.sleep(OBSERVE_PERIOD_S)
        except _Stopped:
            logger.info("told to stop")
        except SpratError as error:
            self._fail(str(error))
            return 1
        except Exception as error:
            logger.exception("the supervisor failed")
            self._fail(f"{type(error).__name__}: {error}")
            return 1
        finally:
            signal.alarm(0)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the stop
            self._stop()
        return 0

    # Starting.

    def _start(self) -> None:
        self._tell("opening the SQL store")
        store = store_url(self._state, self._config.store.url)
        self._state.write_supervisor({"store_url": store})
        open_store(store).dispose()  # brings it to the newest revision before any gateway asks
        self._state.make_runtime()
        self._tell("joining Ray" if self._ray.joined else "starting Ray")
        address = self._ray.start()
        self._listen_for_signals()  # Ray has put its own handlers in place of ours

        from deployments import app

        nodes = app.ray_nodes()
        unplaceable = app.unplaceable(self._config, nodes)
        if unplaceable:
            raise StartError(" ".join(unplaceable.values()))
        redis_url = self._config.redis.url or os.environ.get("REDIS_URL", "")
        if self._ray.joined:
            check_shared(self._config, nodes, redis_url, store)
        if not redis_url:
            self._tell("starting Valkey")
            self._start_valkey()
            redis_url = f"unix://{self._state.valkey_socket}"
        runtime = Runtime(
            config=self._config,
            redis_url=redis_url,
            store_url=store,
            journal_folder=str(self._state.journal_folder),
            weights=self._weights,
            gateway_token=self._secrets.gateway_token,
            pepper=self._secrets.pepper,
        )
        applications = app.application_names(self._config)
        if self._ray.joined:
            self._tell("looking at the nodes")
            check_names(applications, running_applications())
            check_nodes(runtime, nodes)
        self._applications = applications
        self._state.write_supervisor(self._record(runtime, address, nodes))
        self._tell("deploying")
        for _ in app.deploy(runtime, nodes, this_node() if self._ray.joined else None):
            self._check_starter()
            self._observe()
            if self._stopping:
                return
        self._tell("running")

    def _start_valkey(self) -> None:
        self._valkey = start_server(self._state.valkey_socket, self._state.valkey_folder)

    # Watching.

    def _check_starter(self) -> None:
        if self._kept:
            return
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], 0)
        if not readable:
            return
        said = os.read(sys.stdin.fileno(), 64)
        if said == KEEP:
            self._kept = True
        else:
            logger.warning("the starting process is gone before the cluster was ready: stopping everything")
            self._stopping = True

    def _check_children(self) -> None:
        if self._valkey is not None and self._valkey.poll() is not None:
            logger.error("Valkey ended with status %s; starting it again", self._valkey.returncode)
            self._start_valkey()

    def _observe(self) -> None:
        """What `sprat status` shows of Ray: nodes, and Serve's view of each pool."""
        from deployments import app

        nodes = app.ray_nodes()
        self._publish(
            {
                "phase": self._phase,
                "problem": self._problem,
                "observed_s": time.time(),
                "nodes": [
                    {
                        "id": node.node_id,
                        "address": node.address,
                        "labels": node.labels,
                        "resources": node.resources,
                    }
                    for node in nodes
                ],
                "serve": app.serve_states(),
                "unplaceable": app.unplaceable(self._config, nodes),
            }
        )

    def _tell(self, phase: str) -> None:
        logger.info(phase)
        self._phase = phase
        self._publish({"phase": phase, "problem": self._problem, "observed_s": time.time()})

    def _publish(self, observed: dict[str, Any]) -> None:
        """A full disk makes `sprat status` old; it must not stop the cluster."""
        try:
            self._state.write_observed(observed)
        except (OSError, StartError) as error:
            logger.warning("what was observed cannot be written: %s", error)

    def _fail(self, problem: str) -> None:
        logger.error(problem)
        self._problem = problem
        self._tell("failed")

    def _record(self, runtime: Runtime, ray_address: str, nodes: list[NodeState]) -> dict[str, Any]:
        gateway = self._config.gateway
        return {
            "config": str(self._config_path.absolute()),
            # What runs, environment overrides included; the file may change meanwhile.
            "running": self._config.model_dump(mode="json", by_alias=True),
            "config_digest": config_digest(self._config),
            "redis_url": runtime.redis_url,
            "store_url": runtime.store_url,
            "ray_address": ray_address,
            "joined": self._ray.joined,
            "applications": self._applications,
            "endpoint": f"http://{gateway_address(self._config, nodes)}:{gateway.port}/v1",
        }

    # Stopping.

    def _listen_for_signals(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        """While starting, leave at once, wherever it waits; later, at the next look around."""
        # Ray's own handler, where it comes first, sets an alarm that aborts this process 3 s later.
        signal.alarm(0)
        if self._stopping:
            return
        self._stopping = True
        if self._phase != "running":
            raise _Stopped

    def _stop(self) -> None:
        """Gateways drain and settle, engines end, then Ray, then Valkey, which holds what they settled."""
        if self._phase != "failed":
            self._tell("stopping")
        valkey_pid = self._valkey.pid if self._valkey is not None else None
        ours = [each for each in psutil.Process().children(recursive=True) if each.pid != valkey_pid]
        self._ray.stop(self._applications)
        _end_all(ours)
        if self._valkey is not None:
            stop_server(self._valkey)
        self._keep_logs()
        if self._phase == "failed":
            self._state.remove_runtime()  # what went wrong stays readable
        else:
            self._state.forget_supervisor()

    def _keep_logs(self) -> None:
        """Ray's session folder goes; what replicas wrote stays for `sprat logs`."""
        source = self._state.ray_folder / "session_latest" / "logs"
        target = self._state.logs / "ray"
        if source.exists():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                source,
                target,
                ignore=shutil.ignore_patterns("events", "export_events", "old", "python-core-*"),
            )


def config_digest(config: ClusterConfig) -> str:
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]


def _end_all(processes: list[psutil.Process]) -> None:
    """Ray's helpers end a moment after it returns; until then they write into its folder."""
    _, left = psutil.wait_procs(processes, timeout=10)
    for process in left:
        logger.warning("process %d outlived Ray; killing it", process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _take(lock: IO[str]) -> bool:
    """`sprat down` and a second `up` hold the lock for a moment, to look whether somebody else does."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="internal: started by `sprat up`")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--weights", type=json.loads, default={})
    parser.add_argument("--address", help="of a Ray cluster to join")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    state = StateFolder(arguments.state)
    state.make()
    with state.lock_file.open("a") as lock:
        if not _take(lock):
            logger.error("another supervisor holds %s", state.lock_file)
            return 3
        state.write_supervisor({})
        ray_cluster = JoinedRay(arguments.address) if arguments.address else OwnRay(state)
        return Supervisor(state, arguments.config, arguments.weights, ray_cluster).run()


if __name__ == "__main__":
    sys.exit(main())
