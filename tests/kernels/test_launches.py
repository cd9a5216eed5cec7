"""What is launched follows from shapes alone, as a captured CUDA graph needs; which settings are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import selection
from kernels.batch import LoraBatch
from kernels.lora_linear import MAX_SCRATCH_BYTES, launches, planes
from kernels.selection import Settings, Shape, heuristic, search_space, table_line, tuned
from tests.kernels.products import ROUTES, Product

SHAPE = Shape(64, 4096, (4096, 1024, 1024), 16, 64)


@pytest.mark.parametrize("settings", ROUTES.values(), ids=ROUTES)
def test_a_launch_does_not_depend_on_the_batch(settings: Settings) -> None:
    product = Product([0] * 40, [(16, 8, 16)] * 3)
    batch, ranks = LoraBatch(64, 3, "cpu"), product.ranks_tensor

    def seen() -> list[object]:
        found = launches(product.y, product.x, product.a, product.b, ranks, batch, settings)
        return [
            (each.kernel, each.programs, {name: _identity(value) for name, value in each.arguments.items()})
            for each in found
        ]

    batch.update(np.zeros(40, np.int32))
    captured = seen()
    batch.update(np.arange(-1, 39, dtype=np.int32) % 3)
    assert seen() == captured
    batch.update(np.full(7, -1, np.int32))
    assert seen() == captured


def _identity(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    ("shape", "route"),
    [
        (replace(SHAPE, tokens=1), "single"),
        (SHAPE, "split"),
        (replace(SHAPE, tokens=1, columns=14336, widths=(4096,)), "split"),
        (replace(SHAPE, tokens=16384), "fused"),
        (replace(SHAPE, tokens=16384, max_rank=128), "split"),
    ],
)
def test_the_route_follows_the_shape(shape: Shape, route: str) -> None:
    assert heuristic(shape, 132).route == route


def test_scratch_memory_is_bounded() -> None:
    longest = replace(SHAPE, tokens=16384, max_rank=512)
    settings = heuristic(longest, 132)

    assert planes(longest, settings) == 1
    short = replace(SHAPE, tokens=16)
    assert 1 < planes(short, heuristic(short, 132)) <= heuristic(short, 132).parts
    assert 4 * planes(short, heuristic(short, 132)) * short.flat_rank * short.tokens <= MAX_SCRATCH_BYTES


def test_a_table_wins_over_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SETTINGS_FOLDER", tmp_path)
    upto_16, upto_64, other_loras = (Settings("split", parts=parts) for parts in (3, 4, 5))
    lines = [
        table_line(replace(SHAPE, tokens=64), upto_64),
        table_line(replace(SHAPE, tokens=16), upto_16),
        table_line(replace(SHAPE, tokens=16, max_loras=8), other_loras),
    ]
    selection.table_path("Test GPU").write_text(json.dumps({"lines": lines}), encoding="utf-8")

    assert selection.table_path("Test GPU").name == "Test_GPU.json"
    assert tuned(replace(SHAPE, tokens=10), "Test GPU") == upto_16
    assert tuned(replace(SHAPE, tokens=17), "Test GPU") == upto_64
    assert tuned(replace(SHAPE, tokens=16, max_loras=4), "Test GPU") == other_loras
    assert tuned(replace(SHAPE, tokens=65), "Test GPU") is None
    assert tuned(replace(SHAPE, max_rank=64), "Test GPU") is None
    assert tuned(SHAPE, "Another GPU") is None


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_the_search_space_starts_at_the_heuristic(tokens: int) -> None:
    shape = replace(SHAPE, tokens=tokens)
    found = search_space(shape, 132)

    assert found[0] == heuristic(shape, 132)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "wrong", [{"route": "x"}, {"block_m": 32}, {"block_k": 100}, {"rank_tile": 512}, {"block_n": 8}]
)
def test_settings_that_no_kernel_takes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**({"route": "split"} | wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: setattr(p, "y", p.y[:, :-1]), "x and B make"),
        (lambda p: setattr(p, "x", p.x.float()), "y, A or B is not"),
        (lambda p: setattr(p, "x", p.x[:1]), "rows|make"),
        (lambda p: setattr(p, "a", p.a[:2]), "slices|ranks"),
        (lambda p: setattr(p, "x", p.x.repeat_interleave(2, 1)[:, ::2]), "not contiguous"),
        (lambda p: setattr(p, "a", [each[:, :, :8] for each in p.a]), "A is"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(change: object, message: str) -> None:
    from kernels.lora_linear import lora_linear

    product = Product([0, 1, -1], [(16, 8)] * 3)
    batch, ranks = product.batch(), product.ranks_tensor
    change(product)

    with pytest.raises(ValueError, match=message):
        lora_linear(product.y, product.x, product.a, product.b, ranks, batch)
