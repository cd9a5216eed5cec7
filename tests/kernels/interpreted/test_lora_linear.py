"""All routes of `lora_linear` against the fp64 reference, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.lora_linear import lora_expand, lora_linear, lora_shrink
from kernels.selection import Settings
from tests.kernels.products import FUSED, ROUTES, SINGLE, SPLIT, Product, assert_right

MIXED_RANKS = ((16, 8, 0, 1, 5), (16, 8, 3, 0, 5), (16, 0, 0, 1, 16))
"""Per slice, five slots: full, narrower, untargeted modules, rank 1, odd."""

BATCHES = {
    "empty": [],
    "one_row": [2],
    "one_base_row": [-1],
    "all_base": [-1, -1, -1],
    "no_base": [3, 0, 1, 0, 4],
    "half_base": [-1, 4, -1, 0, -1, 4, 1, -1],
    "one_slot": [1, 1, 1, 1],
    "all_slots": [4, 3, 2, 1, 0],
}

every_route = pytest.mark.parametrize("settings", ROUTES.values(), ids=ROUTES)


@pytest.mark.parametrize("slots", BATCHES.values(), ids=BATCHES)
@every_route
def test_mixed_ranks_and_unequal_slices(settings: Settings, slots: list[int]) -> None:
    product = Product(slots, MIXED_RANKS)

    assert_right(product, product.run(settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@every_route
def test_other_dtypes(settings: Settings, dtype: torch.dtype) -> None:
    product = Product([3, -1, 0, 0, 4], MIXED_RANKS, dtype=dtype)

    assert_right(product, product.run(settings))


@pytest.mark.parametrize(("columns", "widths"), [(257, (33,)), (32, (1, 70)), (40, (8, 8, 8, 8))])
@every_route
def test_odd_sizes(settings: Settings, columns: int, widths: tuple[int, ...]) -> None:
    product = Product([1, -1, 0, 1], [(5, 16)] * len(widths), columns=columns, widths=widths)

    assert_right(product, product.run(settings))


@pytest.mark.parametrize("max_rank", [1, 8, 64])
@every_route
def test_largest_ranks(settings: Settings, max_rank: int) -> None:
    ranks = [(max_rank, max_rank // 2, max(max_rank - 3, 1))] * 2
    product = Product([0, 1, -1, 2], ranks, widths=(24, 40), max_rank=max_rank)

    assert_right(product, product.run(settings))


@pytest.mark.parametrize("settings", [replace(FUSED, programs=1), replace(SINGLE, programs=2)])
def test_fewer_programs_than_tiles(settings: Settings) -> None:
    """As in long prefills: each program works through several tiles."""
    product = Product([4, 3, 2, 1, 0], MIXED_RANKS)

    assert_right(product, product.run(settings))


def test_ranks_beyond_one_launch_go_through_two() -> None:
    product = Product([0, 1, 1], [(128, 70)], widths=(24,), max_rank=128)

    assert_right(product, product.run(replace(SPLIT, rank_tile=64)))
    for settings in (SINGLE, FUSED):
        with pytest.raises(ValueError, match="ranks up to 64"):
            product.run(settings)


@every_route
def test_rows_beyond_the_batch_are_base_rows(settings: Settings) -> None:
    product = Product([1, -1, 0], MIXED_RANKS, padding=4)

    assert_right(product, product.run(settings))


@every_route
def test_two_runs_have_the_same_bits(settings: Settings) -> None:
    product = Product([3, -1, 0, 0, 4, 1], MIXED_RANKS)

    assert torch.equal(product.run(settings), product.run(settings))


@every_route
def test_the_product_alone(settings: Settings) -> None:
    """With `add_inputs=False` the caller gives zeros, as vLLM's second stream does."""
    product = Product([3, -1, 0, 4], MIXED_RANKS)
    product.y.zero_()

    y = product.run(settings, add_inputs=False)

    assert_right(product, y)
    assert torch.equal(y, product.run(settings))


def test_the_product_alone_ignores_what_was_there() -> None:
    full = ((16, 8, 4),) * 3
    product = Product([2, 0, 1], full)
    before = product.run(SPLIT, add_inputs=False)
    product.y.fill_(1000)

    assert torch.equal(product.run(SPLIT, add_inputs=False), before)


@every_route
def test_an_adapter_never_shows_in_the_row_of_another(settings: Settings) -> None:
    """A canary with huge weights sits between all others; their rows do not change by a bit."""
    canary = 2
    with_canary = Product([0, canary, 1, canary, -1, 3, canary, 4], ((16, 8, 16, 1, 5),) * 3)
    without = Product(with_canary.slots, with_canary.ranks)
    for a, b in zip(with_canary.a, with_canary.b, strict=True):
        a[canary], b[canary] = 10, 10
    others = [row for row, slot in enumerate(with_canary.slots) if slot != canary]

    y = with_canary.run(settings)

    assert torch.equal(y[others], without.run(settings)[others])
    assert not torch.equal(y, without.run(settings)), "the canary does not sing"


@pytest.mark.parametrize("slots", [[3, -1, 0, 0, 4], [-1, -1]], ids=["mixed", "base"])
def test_two_steps_equal_one_call(slots: list[int]) -> None:
    """Fully sharded layers do a collective in between, on a buffer that they zeroed."""
    product = Product(slots, MIXED_RANKS)
    one_part = replace(SPLIT, parts=1)
    ranks, batch, y = product.ranks_tensor, product.batch(), product.y.clone()
    h = torch.zeros(len(product.widths), len(slots), product.max_rank)

    lora_shrink(h, product.x, product.a, ranks, batch, one_part)
    untouched = torch.ones_like(h, dtype=torch.bool)
    for row, slot in enumerate(slots):
        for slice_, of_slot in enumerate(product.ranks):
            if slot >= 0:
                untouched[slice_, row, : of_slot[slot]] = False
    assert not h[untouched].any(), "base rows and columns beyond the rank stay zero"
    lora_expand(y, h, product.b, ranks, batch, one_part)

    assert torch.equal(y, product.run(one_part))


def test_expand_into_a_range_of_columns() -> None:
    """Row-parallel sharded layers own a range of y's columns."""
    product = Product([0, -1, 1], [(16, 8)], widths=(32,))
    h = torch.zeros(1, 3, 16)
    lora_shrink(h, product.x, product.a, product.ranks_tensor, product.batch(), SPLIT)
    y = torch.zeros(3, 96, dtype=torch.float16)

    lora_expand(y, h, product.b, product.ranks_tensor, product.batch(), SPLIT, first_y_column=48)

    product.y.zero_()
    assert_right(product, y[:, 48:80])
    y[:, 48:80] = 0
    assert not y.any()


def test_strided_rows() -> None:
    """vLLM passes views into wider tensors."""
    product = Product([1, -1, 0], MIXED_RANKS)
    wide_y = torch.cat([product.y, product.y], dim=1)
    wide_x = torch.cat([product.x, product.x], dim=1)
    y, x = wide_y[:, : product.y.shape[1]], wide_x[:, : product.columns]

    lora_linear(y, x, product.a, product.b, product.ranks_tensor, product.batch(), SPLIT)

    assert_right(product, y)
    assert torch.equal(wide_y[:, product.y.shape[1] :], product.y)


def test_the_heuristic_is_used_without_settings() -> None:
    product = Product([1, -1], [(16, 8)], widths=(16,), columns=32)
    y = product.y.clone()

    lora_linear(y, product.x, product.a, product.b, product.ranks_tensor, product.batch())

    assert_right(product, y)
