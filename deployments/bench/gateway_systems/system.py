"""A compared system, as the load generator is told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deployments.bench.gateway_systems.pinning import Pinning


class SystemUnavailable(Exception):
    """It cannot take part; the text says why, and stands in the report."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every system is given. `folder` is private and gone afterwards; `say` is for progress."""

    folder: Path
    stub_url: str
    pinning: Pinning
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """`pids` are the gateway's processes in the path, `store_pids` its Redis': their processor time is
    counted apart. `other_pids` only idle beside them. `pause` has all of them stopped between the system's
    turns. `versions` are (package, version)."""

    name: str
    url: str
    key: str
    model: str
    model_paced: str
    pids: tuple[int, ...]
    store_pids: tuple[int, ...] = ()
    other_pids: tuple[int, ...] = ()
    pause: bool = False
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def all_pids(self) -> tuple[int, ...]:
        return self.pids + self.store_pids + self.other_pids

    def flags(self) -> list[str]:
        """For `python -m loadtest bench-gateway`."""
        fields = {
            "name": self.name,
            "url": self.url,
            "key": self.key,
            "model": self.model,
            "model_paced": self.model_paced,
        }
        parts = [f"{name}={value}" for name, value in fields.items()]
        parts += [f"pid={pid}" for pid in self.pids] + [f"store_pid={pid}" for pid in self.store_pids]
        parts += [f"pause_pid={pid}" for pid in self.all_pids if self.pause]
        versions = [flag for name, value in self.versions for flag in ("--version", f"{name}={value}")]
        return ["--system", ",".join(parts), *versions]
