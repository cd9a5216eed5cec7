"""A Valkey that a test may break: hang, kill, empty, fail over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from deployments.valkey import start_server, stop_server


class OwnValkey:
    """`url` is a link to the socket of the server that is in use, so that it can be exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = folder / "valkey.sock"
        self.url = f"unix://{self.link}"
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._in_use = ""

    def start(self, name: str = "one", *, use: bool = True) -> None:
        """Start, or start again with the data that it had."""
        self._servers[name] = start_server(self.socket(name), self.folder / name)
        if use:
            self.use(name)

    def use(self, name: str) -> None:
        fresh = self.folder / "fresh"
        fresh.symlink_to(self.socket(name))
        fresh.replace(self.link)
        self._in_use = name

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def client(self, name: str = "") -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.socket(name or self._in_use)), decode_responses=True, socket_timeout=10
        )

    def command(self, *words: Any, name: str = "") -> Any:
        with self.client(name) as client:
            return client.execute_command(*words)

    def hang(self) -> None:
        os.kill(self._servers[self._in_use].pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._servers[self._in_use].pid, signal.SIGCONT)

    def kill(self, name: str = "") -> None:
        """As a machine that lost its process: nothing is written any more."""
        server = self._servers[name or self._in_use]
        server.kill()
        server.wait()

    def lose_data(self) -> None:
        """Of a server that does not run."""
        shutil.rmtree(self.folder / self._in_use)

    def stop_all(self) -> None:
        for server in self._servers.values():
            if server.poll() is None:
                server.send_signal(signal.SIGCONT)
                stop_server(server)


@contextmanager
def own_valkey() -> Iterator[OwnValkey]:
    """Running. Not in tmp_path: a unix socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="sprat-own-", dir="/tmp"))
    server = OwnValkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
