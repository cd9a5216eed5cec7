"""The process that runs custom verifiers, as the gateway sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import ConfigError

START_TIMEOUT_S = 30.0
"""Functions may import large packages."""

PROGRAM = "deployments.gateway.custom_verifier_main"


class CustomVerifierChild:
    """Requests and answers are JSON, one object per line, on a socket of their own: functions may print. The
    process ends with that socket, and so with its gateway, however that ends."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)

    @classmethod
    async def start(cls, functions: Sequence[str]) -> CustomVerifierChild:
        """Ready to be asked. Raises ConfigError: a function cannot be imported."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.to_thread(_spawn, theirs)
            child = cls(process, *await asyncio.open_unix_connection(sock=ours))
        except BaseException:
            ours.close()  # and so ends what was spawned by now
            raise
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                ready = await child.ask({"functions": list(functions), "timeout_s": START_TIMEOUT_S})
        except BaseException as error:
            await child.end()
            if isinstance(error, OSError | ValueError):  # TimeoutError is an OSError
                raise ConfigError(
                    f"The python verifiers {', '.join(functions)} cannot be imported: the process that does "
                    f"it ended, or took more than {START_TIMEOUT_S:.0f} s. Import them by hand to see why."
                ) from error
            raise
        if "wrong" in ready:
            await child.end()
            raise ConfigError(
                f"The python verifier {ready['wrong']!r} cannot be used: {ready['why']}. Name it as "
                "module:function, of a module that Python finds where the gateway runs."
            )
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises OSError or ValueError: the process has ended, or says what it should not."""
        number = next(self._numbers)
        self._writer.write(json.dumps({"number": number, **request}).encode() + b"\n")
        await self._writer.drain()
        while line := await self._reader.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer["number"] == number:  # others are for callers who left
                return answer
        raise ConnectionResetError("the process has ended")

    async def end(self) -> None:
        """At once, with all that it started."""
        self._writer.close()
        if self._process.returncode is None:  # not waited for yet, so its id is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """In a thread, which goes on when its caller leaves: so the socket is the thread's."""
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            # As this process finds its modules, wherever it was started.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the gateway, which ends this one
        )
