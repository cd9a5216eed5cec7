"""`sprat bench gateway`: starts the systems before one stub engine, and `python -m loadtest` between them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from deployments.bench.gateway_systems.idle import idle_cpu_percent
from deployments.bench.gateway_systems.names import DIRECT
from deployments.bench.gateway_systems.pinning import Pinning, choose_pinning, on_cores
from deployments.bench.gateway_systems.registry import STARTS
from deployments.bench.gateway_systems.server_process import server_process
from deployments.bench.gateway_systems.system import Bench, RunningSystem, SystemUnavailable
from deployments.free_port import free_port

NOTE = (
    "Every system stands before the same stub engine. sprat: the real gateway with key, limits, budget, "
    "rules, one Redis admit and one settle per call; Ray Serve only manages the life of such processes and "
    "is not in this path. The rivals check less: vllm-router and ray-serve no key, litellm its master key; "
    "none keeps books."
)

STREAMS_SYSTEMS = (DIRECT, "sprat", "sprat-2", "vllm-router")
"""Those that can carry 500 streams on a core at all."""


@dataclass(frozen=True, slots=True)
class Load:
    """What `python -m loadtest bench-gateway` is asked for; texts as its command line takes them."""

    seconds_s: float
    concurrency: str
    modes: str
    streams: int
    save: bool
    as_json: bool

    def flags(self) -> list[str]:
        flags = ["--seconds", str(self.seconds_s), "--concurrency", self.concurrency, "--modes", self.modes]
        if self.streams:
            flags += ["--streams", str(self.streams), "--streams-systems", ",".join(STREAMS_SYSTEMS)]
        flags += ["--save"] if self.save else []
        return flags + (["--json"] if self.as_json else [])


def run_gateway_bench(systems: Sequence[str], load: Load, *, pin: bool, say: Callable[[str], None]) -> int:
    """The exit code of the load generator, which prints the report. In the main thread only."""
    pinning = choose_pinning(frozenset(os.sched_getaffinity(0)), pin=pin)
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as folder, on_cores(pinning.rest):
        try:
            return asyncio.run(_run(systems, load, Path(folder), pinning, say))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM


async def _run(
    systems: Sequence[str], load: Load, folder: Path, pinning: Pinning, say: Callable[[str], None]
) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:  # told to end: what was started is ended on the way out
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    flags: list[str] = []
    running: list[RunningSystem] = []
    async with AsyncExitStack() as stack:
        stub = await _start_stub(folder, pinning, stack)
        bench = Bench(folder, stub.url, pinning, say)
        for name in systems:
            if name == DIRECT:
                running.append(stub)
                continue
            say(f"starting {name}")
            try:
                running.append(await stack.enter_async_context(STARTS[name](bench)))
            except SystemUnavailable as reason:
                say(f"{name} is left out: {reason}")
                flags += ["--skip", f"{name}={reason}"]
        for system in running:
            flags += system.flags()
        for name, percent in (await idle_cpu_percent(running)).items():
            flags += ["--idle-cpu-percent", f"{name}={percent}"]
        facts = ["--cores", str(os.cpu_count()), "--pinning", str(pinning), "--note", NOTE]
        command = [sys.executable, "-m", "loadtest", "bench-gateway", *flags, *load.flags(), *facts]
        # In a session of its own, as the systems: Ctrl-C comes to this process, which ends all of them.
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _start_stub(folder: Path, pinning: Pinning, stack: AsyncExitStack) -> RunningSystem:
    """It is also the system `direct`."""
    port = free_port()
    server = await stack.enter_async_context(
        server_process(
            [sys.executable, "-m", "loadtest", "stub-engine", "--port", str(port)],
            log=folder / "stub.log",
            cores=pinning.rest,
            environment=os.environ,
        )
    )
    url = f"http://127.0.0.1:{port}"
    await server.until_answering(url, "none", "at-once")
    return RunningSystem(DIRECT, url, "none", "at-once", "paced", pids=server.pids())
