"""True ranks of the adapters in vLLM's slots (KERNELS.md section 3.6).

vLLM pads every adapter to the largest rank with zeros and does not say where the zeros begin. The one method
that puts an adapter into a slot is wrapped: after it, each LoRA layer's rank of that slot is written to an
int32 tensor [S, max_loras] beside the layer's weights. A module that the adapter does not target has rank 0.

A rank that is too high costs time only, since what lies beyond is zero; one that is too low is wrong. So
wherever the rank is not known it is R, the rank of the padding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from kernels.plugin.guard import MANAGER, signature_problem

logger = logging.getLogger("vllm.sprat")

_Key = tuple[int, int, torch.Size]

_RANKS: dict[_Key, torch.Tensor] = {}
"""Kept for the life of the process: a captured CUDA graph reads a tensor by its address. An address that the
allocator gives away again does no harm, for a slot is written before it is used."""


def ranks_of(lora_a_stacked: Sequence[torch.Tensor]) -> torch.Tensor:
    """Ranks of a layer's adapters: int32 [S, max_loras] on the weights' device, always the same tensor.

    lora_a_stacked: S tensors [max_loras, 1, R, K], those that vLLM gives to its wrapper.
    """
    first = lora_a_stacked[0]
    key = (first.data_ptr(), len(lora_a_stacked), first.shape)
    ranks = _RANKS.get(key)
    if ranks is None:
        # Outside inference mode, or a later update outside it would be refused.
        with torch.inference_mode(mode=False):
            shape = (len(lora_a_stacked), first.shape[0])
            ranks = torch.full(shape, first.shape[-2], dtype=torch.int32, device=first.device)
        _RANKS[key] = ranks
    return ranks


def keep_ranks_current() -> None:
    """Wrap vLLM's `activate_adapter`, once; leave it alone where its parameters are not the known ones."""
    from vllm.lora.model_manager import LoRAModelManager

    activate = LoRAModelManager.activate_adapter
    if hasattr(activate, "writes_ranks_for_sprat"):
        return
    problem = signature_problem(LoRAModelManager, MANAGER)
    if problem is not None:
        logger.warning("every adapter is computed at the largest rank: %s", problem)
        return
    LoRAModelManager.activate_adapter = writing_ranks(activate)


def writing_ranks(activate: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    """`activate_adapter` that writes the ranks of the slot it fills."""

    @functools.wraps(activate)
    def activate_adapter(self: Any, lora_id: int) -> bool:
        activated = activate(self, lora_id)
        if activated:
            write_ranks(self, lora_id)
        return activated

    activate_adapter.writes_ranks_for_sprat = True  # type: ignore[attr-defined]
    return activate_adapter


def write_ranks(manager: Any, lora_id: int) -> None:
    """Write the ranks of the slot that `lora_id` was put into. `manager`: a LoRAModelManager."""
    slot = manager.lora_index_to_id.index(lora_id)
    adapter = manager.get_adapter(lora_id)
    for name, module in manager.modules.items():
        stacked = _linear_weights(module)
        if stacked is None:
            continue
        local_rank = stacked[0].shape[-2]
        try:
            weights = manager._get_lora_layer_weights(adapter, name)  # noqa: SLF001 (guarded by MANAGER)
            first_row = _first_rank_row(module, local_rank)
            ranks = [min(max(rank - first_row, 0), local_rank) for rank in slice_ranks(weights, len(stacked))]
        except Exception:
            logger.exception("%s is computed at the largest rank for adapter %d", name, lora_id)
            ranks = [local_rank] * len(stacked)
        table = ranks_of(stacked)
        for row, rank in zip(table, ranks, strict=True):
            row[slot].fill_(rank)  # a kernel launch: the next step must not wait for a copy


def slice_ranks(weights: Any, slices: int) -> list[int]:
    """Rank of each slice of a layer. `weights`: vLLM's LoRALayerWeights, or None for a module not targeted.

    Its `lora_a` is a tensor [r, K], or for a packed layer one such tensor or None per part. Where parts do
    not match slices, the largest rank holds for all: never too low.
    """
    if weights is None:
        return [0] * slices
    parts: Iterable[torch.Tensor | None] = (
        weights.lora_a if isinstance(weights.lora_a, (list, tuple)) else [weights.lora_a] * slices
    )
    ranks = [0 if part is None else part.shape[0] for part in parts]
    return ranks if len(ranks) == slices else [max(ranks)] * slices


def _linear_weights(module: Any) -> tuple[torch.Tensor, ...] | None:
    """A linear layer's or the logits' stacked A; None for embeddings and experts, which are not ours."""
    stacked = getattr(module, "lora_a_stacked", None)
    if isinstance(stacked, torch.Tensor):
        stacked = (stacked,)
    if not stacked or any(each.dim() != 4 or each.shape[1] != 1 for each in stacked):
        return None
    return tuple(stacked)


def _first_rank_row(module: Any, local_rank: int) -> int:
    """First row of A on this worker. Fully sharded column layers give each worker R/tp rows of it."""
    b_stacked = module.lora_b_stacked
    full_rank: int = (b_stacked if isinstance(b_stacked, torch.Tensor) else b_stacked[0]).shape[-1]
    return 0 if local_rank == full_rank else module.tp_rank * local_rank
