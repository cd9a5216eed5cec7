"""A gateway process with many connections that do nothing. 300 in the normal run; `make prove-fuzz` opens
10,000, and waits until the gateway has closed them.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import pytest

from deployments.gateway.http.limits import HttpLimits
from tests.fault_matrix import fault
from tests.gateways import GatewayProcess
from tests.raw_http import answers_in

pytestmark = pytest.mark.contract

CONNECTIONS = int(os.environ.get("SPRAT_IDLE_CONNECTIONS", "300"))
TO_THE_END = CONNECTIONS > 1000
SPARE_FILES = 200
AT_ONCE = 200
ASK = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


class Client(asyncio.Protocol):
    """Notes its answer, and when it was closed."""

    def __init__(self) -> None:
        self.received = b""
        self.answered = asyncio.Event()
        self.closed = False

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.answered.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.answered.set()


async def connected(port: int) -> tuple[asyncio.Transport, Client]:
    """After one answer on it."""
    transport, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    transport.write(ASK)
    await asyncio.wait_for(client.answered.wait(), 30)
    (answer,) = answers_in(client.received, closed=False)
    assert answer.status == 200
    return transport, client


async def until_listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                (await connected(port))[0].close()
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return


async def call_ms(port: int) -> float:
    began_s = time.perf_counter()
    transport, _ = await connected(port)
    transport.close()
    return (time.perf_counter() - began_s) * 1000


@fault("many idle connections", "memory stays small, the next call is fast, all are closed in their time")
@pytest.mark.timeout(600)
async def test_idle_connections(
    redis_scheduler: object, valkey_url: str, tmp_path: Path, measured: Callable[..., None]
) -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < CONNECTIONS + SPARE_FILES:
        pytest.skip(f"ulimit -n is {files}: too few for {CONNECTIONS} connections")
    process = GatewayProcess(valkey_url, tmp_path)
    try:
        port = int(process.url.removesuffix("/v1").rsplit(":", 1)[1])
        await until_listening(port)
        gateway = psutil.Process(process.pid)
        alone_ms = median([await call_ms(port) for _ in range(20)])
        before = gateway.memory_info().rss
        clients: list[tuple[asyncio.Transport, Client]] = []
        while len(clients) < CONNECTIONS:
            more = min(AT_ONCE, CONNECTIONS - len(clients))
            clients += await asyncio.gather(*(connected(port) for _ in range(more)))
        opened_s = time.monotonic()
        kib_each = (gateway.memory_info().rss - before) / 1024 / CONNECTIONS
        among_ms = median([await call_ms(port) for _ in range(20)])
        assert kib_each < 40
        assert among_ms < 5 * alone_ms + 20
        assert not any(client.closed for _, client in clients)
        closed_after_s = 0.0
        if TO_THE_END:
            within_s = HttpLimits(body_bytes=0).idle_s + 15
            while not all(client.closed for _, client in clients):
                assert time.monotonic() - opened_s < within_s
                await asyncio.sleep(0.5)
            closed_after_s = time.monotonic() - opened_s
            await call_ms(port)
        for transport, _ in clients:
            transport.abort()
        measured(
            connections=CONNECTIONS,
            kib_per_connection=round(kib_each, 1),
            call_ms_alone=round(alone_ms, 2),
            call_ms_among_them=round(among_ms, 2),
            all_closed_after_s=round(closed_after_s, 1),
        )
    finally:
        process.kill()
