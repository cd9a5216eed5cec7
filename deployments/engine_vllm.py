"""vLLM 0.32's own OpenAI application inside a Ray Serve replica, on a port of its own.

The application runs in a thread with an event loop of its own: building the engine blocks for a
minute, and neither heartbeats nor Serve's health checks may wait for that. Adapters are loaded in
process from the registry's list; vLLM's run-time loading route stays off (THREATS.md 3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from typing import Any

from cluster.config import PoolConfig
from cluster.errors import StartError
from cluster.placement.nodes import pool_gpus
from deployments.engine_guard import Application, EngineGuard
from deployments.engine_replica import EngineReplica
from deployments.free_port import bound_socket
from deployments.loading_turn import loading_turn
from deployments.orphan_guard import OWNER_VARIABLE
from deployments.residency.guard import ResidencyGuard
from deployments.residency.vllm_adapters import VllmAdapters
from deployments.weights.quantisation import quantisation_flags
from kernels.plugin.guard import SWITCH
from kernels.plugin.health import PLUGIN, WORKER_EXTENSION, kernels_in_use

logger = logging.getLogger("ray.serve")

STOP_TIMEOUT_S = 20.0


class VllmReplica(EngineReplica):
    _engine: Any = None
    _thread: threading.Thread | None = None
    _failure: str | None = None

    async def start_engine(self) -> str:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        on_gpu = pool_gpus(self.pool) > 0
        self.report("waiting for another engine of this node to finish loading")
        async with loading_turn(parallel=pool_gpus(self.pool) >= 1):
            self.report(f"loading {self.pool.base_model} into vLLM")
            _set_environment(self.pool, on_gpu=on_gpu)
            self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
            self._thread.start()
            return await self._started

    def engine_failure(self) -> str | None:
        if self._failure is not None:
            return self._failure
        if self._thread is None or not self._thread.is_alive():
            return "its thread ended"
        if self._engine is not None and self._engine.errored:
            return f"vLLM reports {self._engine.dead_error}"
        return None

    async def stop_engine(self) -> None:
        if self._loop is None or self._stop is None or self._thread is None:
            return
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    def _run(self) -> None:
        """The engine thread."""
        owner_loop = self._started.get_loop()
        try:
            asyncio.run(self._serve(owner_loop))
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            owner_loop.call_soon_threadsafe(_fail, self._started, StartError(_explain(error, self.pool)))

    async def _serve(self, owner_loop: asyncio.AbstractEventLoop) -> None:
        import uvicorn
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        weights = self.runtime.weights_of(self.pool.base_model)
        flags = [*quantisation_flags(self.pool, weights), *engine_flags(self.pool, str(weights))]
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
        engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
        async with build_async_engine_client_from_engine_args(engine_arguments) as engine:
            tasks = await engine.get_supported_tasks()
            application = build_app(arguments, tasks, engine.model_config)
            await init_app_state(engine, application.state, arguments, tasks)
            wrapped: Application = application
            await self._check_kernels(engine)
            if self.pool.slots_for_adapters:
                adapters = VllmAdapters(application.state.openai_serving_models, engine)
                wrapped = ResidencyGuard(application, await self.start_residency(adapters, weights))
            sock = bound_socket(self.listen_host())
            server = uvicorn.Server(
                uvicorn.Config(
                    EngineGuard(wrapped, self.runtime.gateway_token),
                    log_level="warning",
                    access_log=False,
                    lifespan="on",
                    loop="none",
                    timeout_keep_alive=75,  # longer than the gateway keeps an idle connection
                )
            )
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event)
                await asyncio.sleep(0.01)
            self._engine = engine
            host, port = sock.getsockname()
            owner_loop.call_soon_threadsafe(self._started.set_result, f"{host}:{port}")
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving

    async def _check_kernels(self, engine: Any) -> None:
        if not self.pool.slots_for_adapters:
            return
        found = await kernels_in_use(engine)
        self.kernels = found.name
        if found.name != self.pool.kernels:
            self.warning = f"adapters run on {found.name} kernels, not on {self.pool.kernels}: {found.reason}"
            logger.warning("pool %s: %s", self.pool_name, self.warning)


def engine_flags(pool: PoolConfig, weights: str) -> list[str]:
    """The flags of `vllm serve` that the YAML stands for."""
    gpus = pool_gpus(pool)
    flags = [
        *("--model", weights),
        *("--served-model-name", pool.base_model),
        *("--dtype", pool.dtype),
        *("--max-model-len", str(pool.context_tokens)),
        *("--max-num-seqs", str(pool.max_concurrency)),
        "--disable-fastapi-docs",
    ]
    if pool.task == "embed":
        flags += ["--runner", "pooling"]
    if gpus > 0:
        flags += ["--gpu-memory-utilization", str(pool.gpu_memory_share)]
    if pool.tensor_parallel > 1:
        # Serve reserved one bundle per rank; vLLM's Ray executor takes the placement group it finds.
        flags += [
            "--tensor-parallel-size",
            str(pool.tensor_parallel),
            "--distributed-executor-backend",
            "ray",
        ]
    if pool.slots_for_adapters:
        flags += [
            "--enable-lora",
            "--max-lora-rank",
            str(pool.max_rank),
            "--max-loras",
            str(pool.slots_for_adapters),
            "--max-cpu-loras",
            str(pool.adapters_on_host),
            "--worker-extension-cls",
            WORKER_EXTENSION,
        ]
        if gpus == 0:
            flags.append("--enforce-eager")  # LoRA on CPU runs eagerly anyway; say so
    return flags + list(pool.engine_options)


def _set_environment(pool: PoolConfig, *, on_gpu: bool) -> None:
    """vLLM reads these while it is imported and hands them on to its processes."""
    os.environ |= {
        OWNER_VARIABLE: str(os.getpid()),
        "VLLM_PLUGINS": f"sprat_orphan_guard,{PLUGIN}",
        SWITCH: pool.kernels,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    if not on_gpu:
        os.environ |= {
            # Ray sets this to the CPUs that the actor reserved, often none.
            "OMP_NUM_THREADS": str(pool.threads or os.cpu_count() or 1),
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(pool.kv_cache_gib))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        if "--enforce-eager" in engine_flags(pool, ""):
            # vLLM compiles a few functions all the same, some with the first request that needs them
            # (logprobs). That takes a C++ compiler, seconds, and, where it fails, the engine's life.
            os.environ["TORCH_COMPILE_DISABLE"] = "1"


def _fail(future: asyncio.Future[str], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _explain(error: BaseException, pool: PoolConfig) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, (MemoryError,)) or "out of memory" in text.lower():
        return f"{pool.base_model} does not fit in memory: {text}. Lower kv_cache_gib or context_tokens."
    if "CUDA" in text and pool_gpus(pool) > 0:
        return f"CUDA is not usable: {text}. Check nvidia-smi, and that make setup took the CUDA wheels."
    return f"vLLM cannot serve {pool.base_model}: {text}"
