"""A server in a process of its own: on given cores, its output in a file, ended with all its children."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil

from deployments.bench.gateway_systems.pinning import on_cores
from deployments.bench.gateway_systems.system import SystemUnavailable

END_TIMEOUT_S = 15.0
"""A local Ray takes seconds to end."""

FIRST_ANSWER_TIMEOUT_S = 120.0
LAST_LINES = 3


class ServerProcess:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def pids(self) -> tuple[int, ...]:
        """Its own and those of its children now."""
        main = psutil.Process(self._process.pid)
        return (main.pid, *(child.pid for child in main.children(recursive=True)))

    async def until_listening(self, port: int) -> None:
        """For one of several processes on a port, where an answer may be another's."""
        deadline_s = time.monotonic() + FIRST_ANSWER_TIMEOUT_S
        while time.monotonic() < deadline_s:
            self._refuse_ended()
            sockets = psutil.Process(self._process.pid).net_connections("tcp")
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in sockets):
                return
            await asyncio.sleep(0.1)
        raise SystemUnavailable(f"does not listen within {FIRST_ANSWER_TIMEOUT_S:g} s: {self._end()}")

    async def until_answering(self, url: str, key: str, model: str) -> None:
        """It completes a chat. Raises SystemUnavailable with the end of its output, or its last answer."""
        deadline_s = time.monotonic() + FIRST_ANSWER_TIMEOUT_S
        said = "no answer"
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
            while time.monotonic() < deadline_s:
                self._refuse_ended()
                try:
                    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                        said = f"{answer.status} {(await answer.text())[:200]}"
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError) as error:
                    said = f"no answer: {error}"
                await asyncio.sleep(0.2)
        raise SystemUnavailable(f"no first answer within {FIRST_ANSWER_TIMEOUT_S:g} s: {said}; {self._end()}")

    async def stop(self) -> None:
        """Told to end, then killed; what it started is killed too if it is left over."""
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            children = main.children(recursive=True)
            main.resume()
        for each in children:
            with suppress(psutil.NoSuchProcess):
                each.resume()  # a load generator that was killed may have left it stopped
        self._process.terminate()
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline_s:  # noqa: ASYNC110 (bounded)
            await asyncio.sleep(0.05)
        self._process.kill()
        self._process.wait()
        for left in psutil.wait_procs(children, timeout=1)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(children, timeout=5)

    def _refuse_ended(self) -> None:
        if self._process.poll() is not None:
            raise SystemUnavailable(f"ended at once with code {self._process.returncode}: {self._end()}")

    def _end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-LAST_LINES:]) or "it said nothing"


@asynccontextmanager
async def server_process(
    command: Sequence[str], *, log: Path, cores: frozenset[int], environment: Mapping[str, str]
) -> AsyncIterator[ServerProcess]:
    """In a session of its own: Ctrl-C reaches it only through this process, which ends it."""
    with log.open("wb") as output, on_cores(cores):
        process = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    server = ServerProcess(process, log)
    try:
        yield server
    finally:
        await server.stop()
