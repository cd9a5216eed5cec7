"""vLLM as an `AdapterEngine`: through its own model list, in process (THREATS.md 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deployments.residency.engine import AdapterNotLoaded


class VllmAdapters:
    def __init__(self, models: Any, engine: Any) -> None:
        """`models`: vLLM's OpenAIServingModels. `engine`: its AsyncLLM, started with our worker extension."""
        self._models = models
        self._engine = engine

    async def load(self, adapter_id: str, folder: Path) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        answer = await self._models.load_lora_adapter(
            LoadLoRAAdapterRequest(lora_name=adapter_id, lora_path=str(folder))
        )
        if not isinstance(answer, str):
            # The engine's sentence may hold paths: it is for operators, who see the replica directory.
            raise AdapterNotLoaded(f"vLLM refuses adapter {adapter_id!r}: {answer.error.message}")

    async def unload(self, adapter_id: str) -> None:
        """The name first, so that no call begins with it; then the weights, which vLLM's own unloading leaves
        in its workers."""
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        number = self._models.lora_requests[adapter_id].lora_int_id
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=adapter_id))
        await self._engine.remove_lora(number)

    async def in_slots(self) -> frozenset[str]:
        """Of all workers: an adapter counts where each of them has it in a slot."""
        answers = await self._engine.collective_rpc("report_adapter_slots", timeout=30.0)
        everywhere = set.intersection(*(set(answer) for answer in answers)) if answers else set()
        requests = self._models.lora_requests.values()
        return frozenset(each.lora_name for each in requests if each.lora_int_id in everywhere)
