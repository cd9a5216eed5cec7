"""Which LoRA kernels a running vLLM engine uses: asked of its workers, not concluded from its settings.

A vLLM that was not given our wrapper (plugin not loaded, version not tested, switched off) serves on without
a word. Whoever starts an engine passes `WORKER_EXTENSION` to it and asks `kernels_in_use` afterwards.
Importing this module loads neither torch nor vllm.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

from kernels.plugin.guard import switch_problem, version_problem, wrapper_problem

WORKER_EXTENSION = "kernels.plugin.health.KernelReport"
"""For vLLM's `--worker-extension-cls`."""

PLUGIN = "sprat"
"""Name of our entry point; `VLLM_PLUGINS`, where it is set, must list it."""

ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class KernelsInUse:
    """`name`: "sprat" if every worker uses our wrapper, else "stock". `reason`: why it is not ours."""

    name: str
    reason: str = ""


class Engine(Protocol):
    """What we need of vLLM's AsyncLLM."""

    async def collective_rpc(self, method: str, timeout: float | None = None) -> list[Any]: ...  # noqa: ASYNC109


class KernelReport:
    """vLLM adds this class to the bases of its worker class, so that workers answer `collective_rpc`."""

    model_runner: Any

    def report_lora_kernels(self) -> dict[str, str]:
        """Fields of `KernelsInUse`; plain, since it crosses a process."""
        mapping = self.model_runner.lora_manager._adapter_manager.punica_wrapper_mapping  # noqa: SLF001
        foreign = [each for each in map(type, mapping.values()) if not _is_ours(each)]
        if not foreign:
            return {"name": "sprat", "reason": ""}
        return {"name": "stock", "reason": reason_for(foreign[0])}

    def report_adapter_slots(self) -> list[int]:
        """vLLM's numbers of the adapters that lie in a slot now, used or not."""
        slots = self.model_runner.lora_manager._adapter_manager.lora_index_to_id  # noqa: SLF001
        return [number for number in slots if number is not None]


async def kernels_in_use(engine: Engine) -> KernelsInUse:
    """Ask all workers. What cannot be proven to be ours counts as vLLM's own."""
    try:
        answers = await engine.collective_rpc("report_lora_kernels", timeout=ANSWER_TIMEOUT_S)
        reports = [KernelsInUse(**answer) for answer in answers]
    except Exception as error:
        return KernelsInUse("stock", f"the workers do not say: {type(error).__name__}: {error}")
    return next((report for report in reports if report.name != "sprat"), KernelsInUse("sprat"))


def reason_for(wrapper: type) -> str:
    """Why a worker uses `wrapper`, found out again in its process."""
    import vllm

    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        return f"VLLM_PLUGINS is {allowed!r} and does not list {PLUGIN}"
    return (
        switch_problem()
        or version_problem(vllm.__version__)
        or wrapper_problem(wrapper)
        or f"vLLM chose {wrapper.__name__}; its log has a line of the logger vllm.sprat that says why"
    )


def _is_ours(wrapper: type) -> bool:
    return wrapper.__module__.startswith("kernels.plugin.")
