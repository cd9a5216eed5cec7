"""What the residency of adapters needs of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cluster.errors import SpratError

NOT_LOADED = "adapter_not_loaded"
"""Code by which a gateway knows that the replica lives, and only this adapter is missing."""


class AdapterNotLoaded(SpratError):
    """An adapter that this replica cannot serve now; another one may."""

    status = 503
    error_type = "service_unavailable"
    code = NOT_LOADED


class AdapterFiles(Protocol):
    """Where the weights come from."""

    async def folder_of(self, adapter_id: str) -> Path:
        """Checked files on this node, fetched where they are not here yet; they stay until `release`. Raises
        a SpratError with the reason."""

    def release(self, adapter_id: str) -> None:
        """The engine holds it no more. Fine if it was never asked for."""


class AdapterEngine(Protocol):
    """All methods run in the engine's own event loop."""

    async def load(self, adapter_id: str, folder: Path) -> None:
        """Weights to where the kernels read them. Raises AdapterNotLoaded with the engine's reason."""

    async def unload(self, adapter_id: str) -> None:
        """Forget it, weights and name. No call uses it."""

    async def in_slots(self) -> frozenset[str]:
        """Those whose weights lie where the kernels read them; the others wait in main memory."""
