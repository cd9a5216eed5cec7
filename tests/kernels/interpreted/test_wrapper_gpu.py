"""The CUDA wrapper on vLLM's real base class, with interpreted kernels under it.

vLLM's CPU build leaves `LoRAKernelMeta` out of the module of that class, since Triton has no CPU backend; the
class itself is plain PyTorch and is put back here. vLLM's own Triton kernels do not run.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper import punica_gpu
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperABC

from kernels.plugin.ranks import ranks_of
from kernels.plugin.wrapper_gpu import SpratPunicaWrapperGPU, slots_of
from tests.kernels.products import Product, assert_right

INDEX_TO_ID = [70, None, 90, 12, 13]
SLOTS = [2, -1, 0, 0, 4, 3]
ROWS = tuple(INDEX_TO_ID[slot] if slot >= 0 else 0 for slot in SLOTS)
RANKS = ((16, 8, 0, 1, 5), (16, 8, 3, 0, 5), (16, 0, 0, 1, 16))
OVERRIDDEN = ("__init__", "update_metadata", "add_lora_linear", "add_shrink", "add_expand")


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> SpratPunicaWrapperGPU:
    monkeypatch.setattr(punica_gpu, "LoRAKernelMeta", LoRAKernelMeta, raising=False)
    config = SimpleNamespace(max_loras=len(INDEX_TO_ID), specialize_active_lora=False)
    return SpratPunicaWrapperGPU(64, 8, torch.device("cpu"), lora_config=config)


def set_rows(wrapper: SpratPunicaWrapperGPU, rows: tuple[int, ...]) -> None:
    mapping = LoRAMapping(index_mapping=rows, prompt_mapping=rows[:2], is_prefill=True)
    wrapper.update_metadata(mapping, INDEX_TO_ID, len(INDEX_TO_ID), 1000)


def product_in_vllm() -> Product:
    """Like `Product`, with the zeros that vLLM pads with where Product has NaN: two steps read all of R."""
    product = Product(SLOTS, RANKS)
    for weights in (*product.a, *product.b):
        weights.nan_to_num_(0)
    ranks_of(product.a).copy_(product.ranks_tensor)
    return product


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_parameters_are_those_of_vllm(name: str) -> None:
    def plain(owner: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(owner, name)).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters]

    assert plain(SpratPunicaWrapperGPU) == plain(punica_gpu.PunicaWrapperGPU)
    assert not SpratPunicaWrapperGPU.__abstractmethods__
    assert issubclass(SpratPunicaWrapperGPU, PunicaWrapperABC)


def test_linear(wrapper: SpratPunicaWrapperGPU) -> None:
    product = product_in_vllm()
    set_rows(wrapper, ROWS)
    y = product.y.clone()

    wrapper.add_lora_linear(y, product.x, tuple(product.a), tuple(product.b), 1.0, product.widths)

    assert_right(product, y)


def test_linear_alone(wrapper: SpratPunicaWrapperGPU) -> None:
    product = product_in_vllm()
    product.y.zero_()
    y = product.y.clone()
    set_rows(wrapper, ROWS)

    wrapper.add_lora_linear(
        y, product.x, tuple(product.a), tuple(product.b), 1.0, product.widths, add_inputs=False
    )

    assert_right(product, y)


def test_two_steps_of_sharded_layers(wrapper: SpratPunicaWrapperGPU) -> None:
    """As `column_parallel_linear.py` calls it, the misspelt `add_input` included."""
    product = product_in_vllm()
    set_rows(wrapper, ROWS)
    y = product.y.clone()
    buffer = torch.zeros(len(product.widths), len(SLOTS), product.max_rank)

    wrapper.add_shrink(buffer, product.x, tuple(product.a), 1.0)
    wrapper.add_expand(y, buffer, tuple(product.b), product.widths, offset_start=0, add_input=True)

    assert_right(product, y)


def test_a_batch_of_base_rows_launches_nothing(
    wrapper: SpratPunicaWrapperGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = product_in_vllm()
    set_rows(wrapper, ROWS)
    set_rows(wrapper, (0,) * len(SLOTS))
    monkeypatch.setattr("kernels.ops.launch.Launch.run", lambda _: pytest.fail("launched"))
    y = product.y.clone()

    wrapper.add_lora_linear(y, product.x, tuple(product.a), tuple(product.b), 1.0, product.widths)

    assert torch.equal(y, product.y)
    assert wrapper.token_mapping_meta.no_lora_flag_cpu.item() is True
    assert wrapper.token_mapping_meta.token_lora_mapping.eq(-1).all(), "no stale tail"


@pytest.mark.parametrize("rows", [ROWS, (90, 90), (0, 12, 0), (0,)])
def test_what_vllms_kernels_read_says_what_vllm_would(
    wrapper: SpratPunicaWrapperGPU, rows: tuple[int, ...]
) -> None:
    """The same rows for each adapter id as vLLM's own preparation; only the order of ids differs."""
    set_rows(wrapper, ROWS * 3)
    set_rows(wrapper, rows)
    slots = torch.from_numpy(slots_of(rows, INDEX_TO_ID)).long()
    ours = wrapper.token_mapping_meta
    stock = LoRAKernelMeta.make(len(INDEX_TO_ID), 64, "cpu", ours.captured_lora_counts)
    stock.prepare_tensors(slots)

    assert ours.no_lora_flag_cpu.item() == stock.no_lora_flag_cpu.item()
    assert wrapper.token_lora_indices.tolist() == slots.tolist()
    if not stock.no_lora_flag_cpu.item():
        assert _rows_by_slot(ours) == _rows_by_slot(stock)
        assert ours.num_active_loras_cpu.item() == stock.num_active_loras_cpu.item()
        if len(rows) <= 2:  # as many prompts as rows
            assert _rows_by_slot(wrapper.prompt_mapping_meta) == _rows_by_slot(stock)


@pytest.mark.parametrize("rows", [ROWS, (90, 90), (0, 12, 0), (0,)])
def test_index_tensors_are_those_of_vllm(wrapper: SpratPunicaWrapperGPU, rows: tuple[int, ...]) -> None:
    def indices() -> list[list[int]]:
        tensors = (
            wrapper._token_lora_indices,
            wrapper._sampler_indices,
            wrapper._sampler_indices_padded,
            wrapper._embeddings_indices,
        )
        return [each[:count].tolist() for each, count in zip(tensors, wrapper.indices_len, strict=True)]

    mapping = LoRAMapping(index_mapping=rows, prompt_mapping=rows[:2])
    wrapper._update_base_metadata(mapping, INDEX_TO_ID, len(INDEX_TO_ID), 1000)
    stock = indices()
    set_rows(wrapper, ROWS[::-1])
    set_rows(wrapper, rows)

    assert indices() == stock


def _rows_by_slot(meta: LoRAKernelMeta) -> dict[int, list[int]]:
    found = {}
    groups = zip(meta.active_lora_ids, meta.num_tokens_per_lora, meta.lora_token_start_loc, strict=False)
    for slot, count, start in groups:
        if count > 0:
            found[slot.item()] = meta.token_indices_sorted_by_lora_ids[start : start + count].tolist()
    return found


def test_metadata_keeps_its_addresses(wrapper: SpratPunicaWrapperGPU) -> None:
    def addresses() -> list[int]:
        meta = wrapper.token_mapping_meta
        tensors = [wrapper.token_batch.buffer, meta.token_lora_mapping, meta.active_lora_ids]
        return [each.data_ptr() for each in tensors]

    before = addresses()
    set_rows(wrapper, ROWS)
    assert addresses() == before


def test_an_adapter_in_no_slot_is_refused(wrapper: SpratPunicaWrapperGPU) -> None:
    with pytest.raises(KeyError):
        set_rows(wrapper, (99,))


def test_a_scale_is_refused(wrapper: SpratPunicaWrapperGPU) -> None:
    product = product_in_vllm()
    with pytest.raises(ValueError, match="scale is 2"):
        wrapper.add_lora_linear(product.y, product.x, tuple(product.a), tuple(product.b), 2.0, product.widths)


def test_a_compiled_layer_asks_the_batch_each_time(wrapper: SpratPunicaWrapperGPU) -> None:
    """The trace holds the operator, not what the batch was when it was traced."""
    product = product_in_vllm()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = y + 0
        wrapper.add_lora_linear(y, x, tuple(product.a), tuple(product.b), 1.0, product.widths)
        return y

    set_rows(wrapper, (0,) * len(SLOTS))
    assert torch.equal(layer(product.y, product.x), product.y)
    set_rows(wrapper, ROWS)
    assert_right(product, layer(product.y, product.x))
