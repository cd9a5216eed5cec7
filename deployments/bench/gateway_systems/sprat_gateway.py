"""`python -m deployments.bench.gateway_systems.sprat_gateway FOLDER`: the real gateway in this process.

What Ray Serve does around it, starting and healing, is no part of a call's path, and no part of this.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from deployments.bench.gateway_systems.gateway_folder import GatewayFolder
from deployments.gateway.replica import start_gateway, tune_process
from deployments.runtime import Runtime


async def _serve(runtime: Runtime) -> None:
    gateway = await start_gateway(runtime)
    told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_end.set)
    await told_to_end.wait()
    await gateway.close(drain_s=0)


if __name__ == "__main__":
    tune_process()
    uvloop.run(_serve(GatewayFolder(Path(sys.argv[1])).runtime()))
