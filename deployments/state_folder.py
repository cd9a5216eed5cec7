"""The state folder: everything that one cluster on this machine keeps, and where it runs.

Sockets and Ray's session live in a short runtime folder beside the system's temporary files, because a
unix socket path may not be longer than 107 bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import StartError
from deployments.private_folder import make_private

STATE_VARIABLE = "SPRAT_STATE"
TOKEN_VARIABLE = "SPRAT_GATEWAY_TOKEN"  # noqa: S105 (a name, not a secret)
PEPPER_VARIABLE = "SPRAT_PEPPER"


SHORTEST_SECRET = 32
"""Characters."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Made once per state folder, mode 600; those of a fleet that several machines share come from their
    environment."""

    pepper: bytes
    gateway_token: str
    ray_token: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Secrets:
        """SPRAT_GATEWAY_TOKEN and SPRAT_PEPPER (hexadecimal), both set. Raises StartError."""
        for name in (TOKEN_VARIABLE, PEPPER_VARIABLE):
            if len(environ.get(name, "")) < SHORTEST_SECRET:
                raise StartError(
                    f"{name} must have at least {SHORTEST_SECRET} random characters: `openssl rand -hex 32`."
                )
        try:
            pepper = bytes.fromhex(environ[PEPPER_VARIABLE])
        except ValueError:
            raise StartError(f"{PEPPER_VARIABLE} must be hexadecimal: `openssl rand -hex 32`.") from None
        return cls(pepper, environ[TOKEN_VARIABLE], ray_token="")


@dataclass(frozen=True, slots=True)
class StateFolder:
    path: Path

    @classmethod
    def default(cls) -> StateFolder:
        return cls(Path(os.environ.get(STATE_VARIABLE) or ".sprat").absolute())

    def make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            self.valkey_folder.mkdir(exist_ok=True)
            if not os.access(self.path, os.W_OK):  # it was there already
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StartError(
                f"the state folder {self.path} cannot be written: {error.strerror}. "
                f"Set {STATE_VARIABLE} to another."
            ) from error

    def make_runtime(self) -> None:
        """The supervisor's: made when it starts, removed when it ends."""
        make_private(self.runtime)

    def remove_runtime(self) -> None:
        shutil.rmtree(self.runtime, ignore_errors=True)

    @property
    def runtime(self) -> Path:
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"sprat-{os.getuid()}-{digest}"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    @property
    def valkey_folder(self) -> Path:
        return self.path / "valkey"

    @property
    def valkey_socket(self) -> Path:
        return self.runtime / "valkey.sock"

    @property
    def ray_folder(self) -> Path:
        return self.runtime / "ray"

    @property
    def ray_token_file(self) -> Path:
        return self.path / "ray_token"

    @property
    def lock_file(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def journal_folder(self) -> Path:
        """Settles that are not in the ledger yet: money."""
        return self.path / "journal"

    @property
    def store_file(self) -> Path:
        return self.path / "store.sqlite"

    def secrets(self) -> Secrets:
        """From the environment, where it names them; else read, or made at the first call."""
        if os.environ.get(PEPPER_VARIABLE) or os.environ.get(TOKEN_VARIABLE):
            return replace(Secrets.from_environment(os.environ), ray_token=self._kept_secrets().ray_token)
        return self._kept_secrets()

    def _kept_secrets(self) -> Secrets:
        path = self.path / "secrets.json"
        if not path.exists():
            made = {
                "pepper": secrets.token_hex(32),
                "gateway_token": secrets.token_urlsafe(48),
                "ray_token": secrets.token_hex(32),
            }
            write_json(path, made, mode=0o600)
        kept = read_json(path)
        if kept is None:
            raise StartError(
                f"{path} is damaged. Restore it, or remove the state folder: all API keys become invalid."
            )
        short = [
            name
            for name in ("pepper", "gateway_token", "ray_token")
            if len(kept.get(name, "")) < SHORTEST_SECRET
        ]
        if short:
            raise StartError(
                f"{path}: {', '.join(short)} must have at least {SHORTEST_SECRET} random characters. "
                "Restore the file, or remove the state folder: all API keys become invalid."
            )
        if not self.ray_token_file.exists():
            write_text(self.ray_token_file, kept["ray_token"], mode=0o600)
        return Secrets(bytes.fromhex(kept["pepper"]), kept["gateway_token"], kept["ray_token"])

    # What the supervisor tells about itself.

    @property
    def _supervisor_file(self) -> Path:
        return self.path / "supervisor.json"

    @property
    def _observed_file(self) -> Path:
        return self.path / "observed.json"

    def write_supervisor(self, record: dict[str, Any]) -> None:
        me = os.getpid()
        kept = {"pid": me, "started": start_ticks(me), **record}
        write_json(self._supervisor_file, kept, mode=0o600)

    def read_supervisor(self) -> dict[str, Any] | None:
        """The record of the supervisor that lives now, else None (a record of a dead one is ignored)."""
        record = read_json(self._supervisor_file)
        if record is None:
            return None
        try:
            process = psutil.Process(record["pid"])
            alive = process.status() != psutil.STATUS_ZOMBIE and start_ticks(process.pid) == record["started"]
        except (psutil.NoSuchProcess, FileNotFoundError):
            return None
        return record if alive else None

    def last_record(self) -> dict[str, Any]:
        """What the last supervisor wrote, whether it lives or was killed; empty after an ordered stop."""
        return read_json(self._supervisor_file) or {}

    def forget_dead_supervisor(self) -> None:
        """Record and runtime folder of one that was killed; one that lives or just starts holds the lock."""
        if not self.path.exists():
            return
        with self.lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self.forget_supervisor()

    def forget_supervisor(self) -> None:
        """The supervisor's own last act."""
        self.remove_runtime()
        for path in (self._supervisor_file, self._observed_file):
            path.unlink(missing_ok=True)

    def write_observed(self, observed: dict[str, Any]) -> None:
        write_json(self._observed_file, observed)

    def read_observed(self) -> dict[str, Any]:
        return read_json(self._observed_file) or {}


def start_ticks(pid: int) -> int:
    """Clock ticks from boot to the start of a process: unlike a time of day it never moves."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19])


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    write_text(path, json.dumps(value, indent=1), mode=mode)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Whole or not at all, with the mode from the first byte on. Raises StartError with the reason."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StartError(
            f"{path} cannot be written: {error.strerror}. Free some space or set {STATE_VARIABLE} to another."
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or half of one. Raises StartError where it may not be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise StartError(
            f"{path} cannot be read: {error.strerror}. Set {STATE_VARIABLE} to a folder of yours."
        ) from error
    return value if isinstance(value, dict) else None
