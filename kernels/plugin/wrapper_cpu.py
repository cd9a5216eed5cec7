"""vLLM's LoRA wrapper on CPU, with rows grouped by adapter (KERNELS.md section 3.8).

vLLM's own looks up every row's adapter by index, and index -1 of a row without adapter is Python's last slot:
such rows get the adapter that happens to sit there (vLLM PR #48421, #49656). Here they belong to no segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from kernels.grouped import Block, add_lora, blocks_of, expand, shrink
from kernels.plugin.ranks import ranks_of

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping


class SpratPunicaWrapperCPU(PunicaWrapperCPU):  # type: ignore[misc]  # mypy does not read vllm
    """Shapes and meaning of the arguments are vLLM's (KERNELS.md section 3.3)."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._token_blocks: tuple[Block, ...] = ()
        self._sampled_blocks: tuple[Block, ...] = ()
        self._tokens = 0
        self._sampled = 0

    @override
    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        token_slots, sampled_slots = self.token_lora_indices.numpy(), self.sampler_indices.numpy()
        self._token_blocks, self._tokens = blocks_of(token_slots), len(token_slots)
        self._sampled_blocks, self._sampled = blocks_of(sampled_slots), len(sampled_slots)

    @override
    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        self._check_rows(x)
        add_lora(y, x, lora_a_stacked, lora_b_stacked, ranks_of(lora_a_stacked), self._token_blocks, scale)

    @override
    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        self._check_rows(x)
        shrink(y, x, lora_a_stacked, ranks_of(lora_a_stacked), self._token_blocks, scale)

    @override
    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        self._check_rows(y)
        expand(y[:, offset_start:], x, lora_b_stacked, self._token_blocks, add_inputs=add_inputs)

    @override
    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        self._check_rows(y)
        expand(y, (x,), (lora_b_stacked,), self._token_blocks, add_inputs=add_inputs)

    @override
    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if len(x) != self._sampled:
            raise ValueError(
                f"{len(x)} rows of logits, but the adapters of {self._sampled} are known; vLLM does not give "
                "them for prompt_logprobs: ask without, or leave lm_head out of the adapter"
            )
        vocabulary = lora_b_stacked[:, :, : y.shape[-1]]  # B's may be padded further than y's
        ranks = ranks_of((lora_a_stacked,))
        add_lora(y, x, (lora_a_stacked,), (vocabulary,), ranks, self._sampled_blocks, scale)

    def _check_rows(self, rows: torch.Tensor) -> None:
        """More rows than mapped tokens are padding, which no adapter applies to."""
        if len(rows) < self._tokens:
            raise ValueError(f"{len(rows)} rows, but the batch has {self._tokens} tokens")
