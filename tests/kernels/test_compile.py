"""Every kernel that the selection chooses, compiled for sm_90 on this machine; the whole search space is
`python -m kernels.compile_check`."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from kernels.compile_check import Case, Row, check, compile_launch, selected_cases
from kernels.selection import Settings, Shape

QKV = Shape(64, 4096, (4096, 1024, 1024), 16, 64)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


@pytest.mark.parametrize("layer", ["qkv", "down", "odd"])
def test_what_the_selection_returns_fits_the_chip(layer: str) -> None:
    cases = [
        case
        for case in selected_cases(tokens=(1, 64, 16384), max_ranks=(16,))
        if case.layer == layer and case.dtype == torch.bfloat16
    ]

    rows = list(check(cases))

    assert {row.kernel for row in rows} >= {"shrink_kernel", "expand_kernel"}
    assert not [row for row in rows if not row.fits]


def test_a_kernel_that_needs_too_much_is_found() -> None:
    too_large = Settings("split", block_m=128, block_k=256, rank_tile=16, stages=4)

    rows = list(check([Case("qkv", QKV, too_large, torch.bfloat16)]))

    assert not all(row.fits for row in rows)


def test_a_row_fits_by_stack_and_shared_memory() -> None:
    row = Row("kernel", "qkv", "bfloat16", 16, {}, 255, 227 * 1024, 0)

    assert row.fits
    assert not replace(row, stack_bytes=8).fits
    assert not replace(row, shared_bytes=227 * 1024 + 1).fits


def test_weights_load_in_vectors_and_products_are_matrix_instructions() -> None:
    """The flattened ranks once hid A's alignment from the compiler, which then loaded two bytes at a time."""
    settings = Settings("split", one_row=True)

    shrink, expand = (
        compile_launch(launch).asm["ptx"] for launch in Case("qkv", QKV, settings, torch.bfloat16).launches()
    )

    for ptx in (shrink, expand):
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in ptx
        # One row's x is a vector of its own; nothing else is loaded by the element.
        assert len(re.findall(r"ld\.global[a-z0-9.:]*\.b16", ptx)) <= 4
    assert "cp.async.cg.shared.global" in shrink
    assert "ld.global.v4.b32" in expand
    assert not re.search(r"\b(atom|red)\.", shrink + expand)


def test_dependent_launch_waits_only_where_it_is_asked_for() -> None:
    for pdl in (False, True):
        case = Case("qkv", QKV, Settings("split", pdl=pdl), torch.bfloat16)
        shrink, expand = (compile_launch(launch).asm["ptx"] for launch in case.launches())

        assert ("griddepcontrol.launch_dependents" in shrink) is pdl
        assert ("griddepcontrol.wait" in expand) is pdl
