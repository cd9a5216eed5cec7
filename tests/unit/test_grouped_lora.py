"""The CPU path against the fp64 reference, and what it must never touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.batch import BASE_ROW
from kernels.grouped import blocks_of, expand, grouped_lora_linear, shrink
from kernels.reference import lora_linear_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

LAYOUTS = {
    "no_rows": [],
    "one_base_row": [-1],
    "one_row": [2],
    "all_base": [-1] * 5,
    "one_adapter_everywhere": [1] * 6,
    "runs": [0, 0, 0, 2, 2, 1],
    "runs_beside_base": [-1, 0, 0, -1, -1, 3, 3, -1],
    "scattered": [0, 1, 2, 0, 1, 2, 0],
    "scattered_beside_base": [3, -1, 3, -1, 0, -1, 3],
    "runs_and_scattered": [1, 1, 0, 2, 0, 2, 3, 3, -1],
}


@dataclass
class Layer:
    """A linear layer with adapters as vLLM stacks them: zeros beyond the true rank."""

    y: Tensor
    x: Tensor
    a: list[Tensor]
    b: list[Tensor]
    ranks: Tensor


def layer_of(
    rows: int,
    ranks: list[list[int]],
    widths: tuple[int, ...],
    *,
    inputs: int = 17,
    max_rank: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    max_loras = len(ranks[0])
    a = [torch.randn(max_loras, 1, max_rank, inputs, generator=generator) for _ in widths]
    b = [torch.randn(max_loras, 1, width, max_rank, generator=generator) for width in widths]
    for a_slice, b_slice, slice_ranks in zip(a, b, ranks, strict=True):
        for slot, rank in enumerate(slice_ranks):
            a_slice[slot, :, rank:] = 0
            b_slice[slot, :, :, rank:] = 0
    return Layer(
        torch.randn(rows, sum(widths), generator=generator).to(dtype),
        torch.randn(rows, inputs, generator=generator).to(dtype),
        [each.to(dtype) for each in a],
        [each.to(dtype) for each in b],
        torch.tensor(ranks, dtype=torch.int32),
    )


def bits(values: Tensor) -> Tensor:
    """Compares as bits: -0.0 is not 0.0."""
    return values.contiguous().view(torch.uint8)


def assert_right(layer: Layer, slots: list[int]) -> None:
    given_y, slot_of = layer.y.clone(), np.array(slots, dtype=np.int64)
    wanted = lora_linear_reference(layer.y, layer.x, layer.a, layer.b, torch.tensor(slot_of), layer.ranks)

    grouped_lora_linear(layer.y, layer.x, layer.a, layer.b, layer.ranks, slot_of)

    # One rounding of y, and float32 sums of a few dozen products of numbers near 1.
    tolerance = torch.finfo(layer.y.dtype).eps / 2 * wanted.abs() + 1e-4
    assert bool(((layer.y.double() - wanted).abs() <= tolerance).all())
    base = torch.from_numpy(slot_of == BASE_ROW)
    assert torch.equal(bits(layer.y[base]), bits(given_y[base]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_rows(slots: list[int], dtype: torch.dtype) -> None:
    ranks = [[8, 3, 1, 5], [8, 0, 2, 5], [4, 3, 1, 0]]  # parts that an adapter leaves alone have rank 0

    assert_right(layer_of(len(slots), ranks, (12, 5, 5), dtype=dtype), slots)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_batch(data: st.DataObject) -> None:
    max_loras = data.draw(st.integers(1, 5))
    widths = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    rank = st.integers(0, 8)
    ranks = [data.draw(st.lists(rank, min_size=max_loras, max_size=max_loras)) for _ in widths]
    slots = data.draw(st.lists(st.integers(-1, max_loras - 1), max_size=12))
    inputs, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 1000))

    assert_right(layer_of(len(slots), ranks, widths, inputs=inputs, seed=seed), slots)


def test_nothing_beyond_the_true_rank_is_read() -> None:
    layer = layer_of(4, [[3, 8]], (6,))
    layer.a[0][0, :, 3:] = float("nan")
    layer.b[0][0, :, :, 3:] = float("nan")

    grouped_lora_linear(layer.y, layer.x, layer.a, layer.b, layer.ranks, np.array([0, 1, -1, 0]))

    assert not layer.y.isnan().any()


def test_an_adapter_of_rank_zero_leaves_its_rows_alone() -> None:
    layer = layer_of(4, [[0, 8], [0, 8]], (6, 2))
    given_y = layer.y.clone()

    grouped_lora_linear(layer.y, layer.x, layer.a, layer.b, layer.ranks, np.array([0, 1, 0, 0]))

    assert torch.equal(bits(layer.y[[0, 2, 3]]), bits(given_y[[0, 2, 3]]))
    assert not torch.equal(layer.y[1], given_y[1])


def test_a_huge_adapter_changes_only_its_own_rows() -> None:
    slots = np.array([0, 1, -1, 0, 1, -1, 1])
    layer = layer_of(7, [[8, 8]], (6,))
    quiet = layer.y.clone()
    grouped_lora_linear(quiet, layer.x, layer.a, layer.b, layer.ranks, slots)
    layer.a[0][1] = float("inf")

    grouped_lora_linear(layer.y, layer.x, layer.a, layer.b, layer.ranks, slots)

    others = torch.from_numpy(slots != 1)
    assert torch.equal(bits(layer.y[others]), bits(quiet[others]))
    assert not layer.y[~others].isfinite().all()


def test_rows_that_follow_each_other_are_not_copied() -> None:
    """One adapter for all rows, the usual batch of a specialist: views only."""
    (block,) = blocks_of(np.array([-1, 3, 3, 3, -1]))
    values = torch.randn(5, 2)

    assert block.rows == slice(1, 4)
    assert block.take(values).data_ptr() == values[1:].data_ptr()


def test_scattered_rows_are_gathered_together() -> None:
    first, second = blocks_of(np.array([0, 2, 1, 2, 1, 0, 3, 3]))

    assert (first.rows, [each.slot for each in first.segments]) == (slice(6, 8), [3])
    assert isinstance(second.rows, Tensor)
    assert second.rows.tolist() == [0, 5, 2, 4, 1, 3]
    assert [(each.slot, each.rows) for each in second.segments] == [
        (0, slice(0, 2)),
        (1, slice(2, 4)),
        (2, slice(4, 6)),
    ]


@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_the_two_halves_make_the_whole(slots: list[int]) -> None:
    layer = layer_of(len(slots), [[8, 3, 1, 5], [2, 0, 8, 5]], (12, 5))
    whole, slot_of = layer.y.clone(), np.array(slots, dtype=np.int64)
    grouped_lora_linear(whole, layer.x, layer.a, layer.b, layer.ranks, slot_of)
    hidden = torch.zeros(2, len(slots), 8)

    shrink(hidden, layer.x, layer.a, layer.ranks, blocks_of(slot_of))
    expand(layer.y, hidden, layer.b, blocks_of(slot_of))

    torch.testing.assert_close(layer.y, whole)
    assert not hidden[:, slot_of == BASE_ROW].any()


def test_expand_can_replace_instead_of_adding() -> None:
    layer = layer_of(3, [[8, 8]], (6,))
    hidden, blocks = torch.randn(1, 3, 8), blocks_of(np.array([0, -1, 1]))
    given_y = layer.y.clone()

    expand(layer.y, hidden, layer.b, blocks, add_inputs=False)

    torch.testing.assert_close(layer.y[0], layer.b[0][0, 0] @ hidden[0, 0])
    assert torch.equal(layer.y[1], given_y[1])
