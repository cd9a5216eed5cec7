"""Weights on a node that is not the one that started the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import BaseModelConfig
from deployments.weights.errors import WeightsError
from deployments.weights.on_node import weights_on_node


def model_in(folder: Path) -> BaseModelConfig:
    return BaseModelConfig(source=f"folder:{folder}", parameters=1)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_what_was_prepared_is_taken_where_it_is(ready: Path, tmp_path: Path) -> None:
    elsewhere = model_in(tmp_path / "not-asked-for")

    assert weights_on_node("m", elsewhere, str(ready)) == ready


@pytest.mark.parametrize("prepared", [None, "/path/of/another/machine"])
def test_a_node_without_it_makes_its_own(ready: Path, prepared: str | None) -> None:
    assert weights_on_node("m", model_in(ready), prepared) == ready


def test_what_cannot_be_made_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lacks config\.json"):
        weights_on_node("m", model_in(tmp_path), None)
