"""Random shapes, ranks and batches: every route agrees with the fp64 reference."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.products import ROUTES, Product, assert_right


@st.composite
def products(draw: st.DrawFn) -> Product:
    max_loras = draw(st.integers(1, 4))
    max_rank = draw(st.sampled_from([1, 8, 16, 32]))
    slices = draw(st.integers(1, 3))
    rank = st.integers(0, max_rank)
    return Product(
        slots=draw(st.lists(st.integers(-1, max_loras - 1), max_size=6)),
        ranks=[draw(st.lists(rank, min_size=max_loras, max_size=max_loras)) for _ in range(slices)],
        columns=draw(st.integers(1, 80)),
        widths=tuple(draw(st.lists(st.integers(1, 50), min_size=slices, max_size=slices))),
        max_rank=max_rank,
        dtype=draw(st.sampled_from([torch.float16, torch.float32])),
        padding=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 1000)),
    )


@given(product=products())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_every_route_is_right(product: Product) -> None:
    for route in ROUTES.values():
        assert_right(product, product.run(route))
