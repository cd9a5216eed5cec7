"""A second host: a network namespace with an address of its own, joined to this one by virtual cards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@dataclass(frozen=True)
class Link:
    """`here` and `there`: addresses of the two sides."""

    name: str
    here: str
    there: str

    def inside(self, command: list[str]) -> list[str]:
        """The command, run on the other side. Files are the same there."""
        return ["ip", "netns", "exec", self.name, *command]

    def cut(self) -> None:
        """Packets vanish without an answer, as when a cable is pulled."""
        ip("-n", self.name, "link", "set", f"{self.name}-b", "down")


@contextmanager
def second_host() -> Iterator[Link]:
    """Skips the test, with the reason, where no namespace can be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    subnet = f"10.{200 + os.getpid() % 50}.{secrets.randbelow(250)}"
    made = Link(f"sp{secrets.token_hex(3)}", f"{subnet}.1", f"{subnet}.2")
    try:
        ip("netns", "add", made.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        here, there = f"{made.name}-a", f"{made.name}-b"
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", made.name)
        ip("addr", "add", f"{made.here}/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", made.name, "addr", "add", f"{made.there}/24", "dev", there)
        ip("-n", made.name, "link", "set", there, "up")
        ip("-n", made.name, "link", "set", "lo", "up")
        yield made
    finally:
        ip("netns", "del", made.name)  # and the pair with it


def until_listening(host: str, port: int, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {host}:{port}"
            time.sleep(0.2)
        else:
            return
