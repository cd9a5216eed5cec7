"""A real PostgreSQL of the tests' own: a unix socket in a throw-away folder, gone with the session.

It keeps nothing, so it does not wait for the disk.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

MISSING = (
    "PostgreSQL is not installed, and the store is tested on it as well as on SQLite. As root, "
    "tests/install_postgres.sh installs it (`make test` and `make contract` run that script). Or install the "
    "package `postgresql` of your system: postgres and initdb are sought on PATH and in /usr/lib/postgresql."
)

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    # Found soon, because a test waits for it.
    "deadlock_timeout": "100ms",
}


@dataclass
class RunningPostgres:
    folder: Path
    process: subprocess.Popen[bytes]
    _numbers: count[int] = field(default_factory=count)

    def url(self, database: str) -> str:
        return f"postgresql://sprat@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """An empty one; returns its URL."""
        name = f"test{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Takes as long as making one, and all go with the server: for tests about just that."""
        name = url.partition("@/")[2].partition("?")[0]
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def away(self, url: str) -> Iterator[None]:
        """This database refuses connections and drops those it has."""
        name = url.partition("@/")[2].partition("?")[0]
        self._run(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            yield
        finally:
            self._run(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # does not wait for clients
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_postgres() -> RunningPostgres:
    """Raises RuntimeError: not installed, or it does not start (with its log)."""
    binaries = _binaries()
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="sprat-pg-", dir="/tmp"))  # a socket's path has 107 bytes at most
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = folder / "data"
    initdb = [
        *(binaries / "initdb", "--pgdata", data, "--username", "sprat", "--auth", "trust"),
        *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
    ]
    made = subprocess.run(initdb, cwd=folder, capture_output=True, text=True, check=False, **who)
    if made.returncode != 0:
        raise RuntimeError(f"initdb failed: {made.stderr}")
    settings = SETTINGS | {"unix_socket_directories": str(folder)}
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *flags],
            cwd=folder,
            stdout=output,
            stderr=output,
            preexec_fn=_end_with_the_tests,  # noqa: PLW1509 (at the start of a session no other thread runs)
            **who,
        )
    server = RunningPostgres(folder, process)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with suppress(psycopg.OperationalError), psycopg.connect(server.url("postgres")):
            return server
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')}")


def _end_with_the_tests() -> None:
    """PR_SET_PDEATHSIG: also when they are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _binaries() -> Path:
    on_path = shutil.which("postgres")
    folders = [] if on_path is None else [Path(on_path).resolve().parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
            return folder
    raise RuntimeError(MISSING)


def _unprivileged_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root. None: we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody.")
