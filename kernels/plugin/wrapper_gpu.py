"""vLLM's LoRA wrapper on CUDA, with our kernels under its linear layers (KERNELS.md sections 3.3 to 3.5).

Embedding, logits, full-linear and mixture-of-experts layers stay with vLLM's kernels; they find their
metadata where they always did, filled from the host instead of on the device.
"""

# ruff: noqa: PLR0917 - operators take arguments by position, in vLLM's order

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.utils.torch_utils import async_tensor_h2d, direct_register_custom_op

from kernels.batch import BASE_ROW, LoraBatch
from kernels.plugin.ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.ops.triton_ops import LoRAKernelMeta

LIBRARY = torch.library.Library("sprat", "FRAGMENT")
"""Holds our operators: they live as long as it does."""

_BATCHES: WeakValueDictionary[int, LoraBatch] = WeakValueDictionary()
"""Batches by the address of their buffer. An operator takes tensors; a traced number would become a constant
of the compiled graph, also of one that another process loads from vLLM's cache."""


class SpratPunicaWrapperGPU(PunicaWrapperGPU):  # type: ignore[misc]  # mypy does not read vllm
    """Shapes and meaning of the arguments are vLLM's (KERNELS.md section 3.3). `scale` is 1 there: it is
    folded into B when an adapter is loaded."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        register_operators()  # here, as a traced method cannot
        self.token_batch = LoraBatch(max_num_batched_tokens, self.max_loras, device)
        self.prompt_batch = LoraBatch(max_num_batched_tokens, self.max_loras, device)
        for batch, meta in self._batches():
            _BATCHES[batch.buffer.data_ptr()] = batch
            show_batch_to_vllm(batch, meta)

    @override
    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """No device-to-host copy and no synchronisation, unlike the method it replaces."""
        self.is_prefill = mapping.is_prefill
        token_slots = slots_of(mapping.index_mapping, lora_index_to_id)
        self.token_batch.update(token_slots)
        prompt_slots = token_slots
        if mapping.prompt_mapping == mapping.index_mapping:  # decoding: one row for each request
            self.prompt_batch.follow(self.token_batch)
        else:
            prompt_slots = slots_of(mapping.prompt_mapping, lora_index_to_id)
            self.prompt_batch.update(prompt_slots)
        self._write_indices(token_slots, prompt_slots, max_loras, vocab_size)
        for batch, meta in self._batches():
            write_host_flags(batch, meta)

    def _write_indices(
        self,
        token_slots: NDArray[np.int32],
        prompt_slots: NDArray[np.int32],
        max_loras: int,
        vocab_size: int,
    ) -> None:
        """The index tensors of vLLM's base class (int64), in one copy to the device.

        For the inherited layers: a base row's place in the logits of all slots is in the last one, its
        embedding offset is that of slot 0; both are masked there.
        """
        prompts = len(prompt_slots)
        padded_slots = np.where(prompt_slots < 0, max_loras - 1, prompt_slots)
        parts = (
            (self._token_lora_indices, token_slots),
            (self._sampler_indices, prompt_slots),
            (self._sampler_indices_padded, np.arange(prompts) + padded_slots * prompts),
            (self._embeddings_indices, np.maximum(token_slots, 0).astype(np.int64) * vocab_size),
        )
        packed = async_tensor_h2d(np.concatenate([values for _, values in parts]), device=self.device)
        lengths = [len(values) for _, values in parts]
        for (target, _), values in zip(parts, packed.split(lengths), strict=True):
            target[: len(values)].copy_(values)
        self.indices_len[:] = lengths

    @override
    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """y += x·Aᵀ·Bᵀ; `add_inputs=False` (dual stream) gives y zeroed and takes the product alone."""
        _only_unscaled(scale)
        torch.ops.sprat.lora_linear(
            y,
            x,
            list(lora_a_stacked),
            list(lora_b_stacked),
            self.token_batch.buffer,
            kwargs.get("add_inputs", True),
        )

    @override
    def add_shrink(
        self, y: Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **kwargs: Any
    ) -> None:
        """First half of fully sharded layers' two steps: y fp32 `[S, T, R]`, zeroed by the caller."""
        _only_unscaled(scale)
        x = x.view(-1, x.shape[-1])
        torch.ops.sprat.lora_shrink(y, x, list(lora_a_stacked), self.token_batch.buffer)

    @override
    def add_expand(
        self,
        y: Tensor,
        x: Tensor,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Second half: x fp32 `[S, T, R]` after the collective. Callers' `add_input=True` is the default."""
        y = y.view(-1, y.shape[-1])
        torch.ops.sprat.lora_expand(
            y, x, list(lora_b_stacked), self.token_batch.buffer, offset_start, add_inputs
        )

    def _batches(self) -> tuple[tuple[LoraBatch, LoRAKernelMeta], ...]:
        return (self.token_batch, self.token_mapping_meta), (self.prompt_batch, self.prompt_mapping_meta)


def slots_of(adapter_ids: Sequence[int], lora_index_to_id: Sequence[int | None]) -> NDArray[np.int32]:
    """Slot of each row, int32 `[T]`. An id of 0 or less is a base row; an id in no slot raises `KeyError`."""
    slots = {lora_id: slot for slot, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
    slot_of_id = {lora_id: slots[lora_id] if lora_id > 0 else BASE_ROW for lora_id in set(adapter_ids)}
    return np.fromiter(map(slot_of_id.__getitem__, adapter_ids), np.int32, len(adapter_ids))


def show_batch_to_vllm(batch: LoraBatch, meta: LoRAKernelMeta) -> None:
    """Makes the device tensors that vLLM's own kernels read views of the batch: one copy serves both.

    vLLM lists the base rows first, we list them last; its kernels skip them wherever they are.
    """
    meta.token_lora_mapping = batch.token_slots
    meta.token_indices_sorted_by_lora_ids = batch.row_ids
    meta.active_lora_ids = batch.active_slots
    meta.num_tokens_per_lora = batch.slot_rows
    meta.lora_token_start_loc = batch.slot_starts


def write_host_flags(batch: LoraBatch, meta: LoRAKernelMeta) -> None:
    """What vLLM's operators read on the host: whether to launch at all, and for how many adapters."""
    meta.no_lora_flag_cpu.fill_(batch.base_only)
    active = batch.active_groups
    captured = [count for count in meta.captured_lora_counts if count >= active]
    meta.num_active_loras_cpu.fill_(captured[0] if captured and not batch.base_only else active)


@cache
def register_operators() -> None:
    """`torch.ops.sprat.*`: opaque to torch.compile, which would otherwise fix at trace time what the batch
    decides (KERNELS.md section 3.5)."""
    for operator in (lora_linear, lora_shrink, lora_expand):
        direct_register_custom_op(
            operator.__name__,
            operator,
            mutates_args=["y"],
            fake_impl=_changes_nothing_but_y,
            target_lib=LIBRARY,
        )


def lora_linear(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], batch_buffer: Tensor, add_inputs: bool
) -> None:
    """`sprat::lora_linear`. Launches nothing for a batch of base rows, also when that is being captured."""
    from kernels.lora_linear import lora_linear as run

    batch = _BATCHES[batch_buffer.data_ptr()]
    if not batch.base_only:
        run(y, x, a, b, ranks_of(a), batch, add_inputs=add_inputs)


def lora_shrink(y: Tensor, x: Tensor, a: list[Tensor], batch_buffer: Tensor) -> None:
    """`sprat::lora_shrink`."""
    from kernels.lora_linear import lora_shrink as run

    batch = _BATCHES[batch_buffer.data_ptr()]
    if not batch.base_only:
        run(y, x, a, ranks_of(a), batch)


def lora_expand(
    y: Tensor, x: Tensor, b: list[Tensor], batch_buffer: Tensor, offset_start: int, add_inputs: bool
) -> None:
    """`sprat::lora_expand`. Ranks belong to A, which is not here: all of R counts, and zeros add nothing."""
    from kernels.lora_linear import lora_expand as run

    batch = _BATCHES[batch_buffer.data_ptr()]
    if not batch.base_only:
        ranks = _full_ranks(len(b), batch.max_loras, b[0].shape[3], b[0].device)
        run(y, x, b, ranks, batch, first_y_column=offset_start, add_inputs=add_inputs)


def _changes_nothing_but_y(*_: Any) -> None:
    """What tracing runs in place of an operator: no shape depends on it."""


@cache
def _full_ranks(slices: int, max_loras: int, max_rank: int, device: torch.device) -> Tensor:
    """Kept: a captured graph holds its address."""
    return torch.full((slices, max_loras), max_rank, dtype=torch.int32, device=device)


def _only_unscaled(scale: float) -> None:
    if scale != 1.0:
        raise ValueError(f"scale is {scale}; vLLM folds it into B and passes 1")
