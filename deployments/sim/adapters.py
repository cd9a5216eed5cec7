"""The simulated engine as an `AdapterEngine`: loading takes the declared time, slots are counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deployments.sim.served_models import ServedModels


class SimulatedAdapters:
    def __init__(self, served: ServedModels, load_s: float, slots: int) -> None:
        self._served = served
        self._load_s = load_s
        self._slots = slots

    async def load(self, adapter_id: str, folder: Path) -> None:  # noqa: ARG002 (there are no weights)
        await asyncio.sleep(self._load_s)
        self._served.load_adapter(adapter_id)

    async def unload(self, adapter_id: str) -> None:
        self._served.unload_adapter(adapter_id)

    async def in_slots(self) -> frozenset[str]:
        """The last ones that were loaded."""
        return frozenset(self._served.adapters[-self._slots :])
