"""What vLLM is told of a checkpoint's quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import PoolConfig
from cluster.errors import StartError
from deployments.weights.quantisation import quantisation_flags


def pool(quantisation: str | None) -> PoolConfig:
    return PoolConfig.model_validate(
        {
            "tier": "small",
            "base_model": "m",
            "node_class": "card",
            "context_tokens": 1024,
            "quantisation": quantisation,
            "throughput": {"prompt_tokens_per_s": 1, "output_tokens_per_s": 1},
        }
    )


def weights(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"architectures": ["Any"], **config}))
    return folder


@pytest.mark.parametrize("quantisation", ["fp8", "int8", "awq", "gptq"])
def test_a_quantised_checkpoint_speaks_for_itself(tmp_path: Path, quantisation: str) -> None:
    whole = weights(tmp_path, quantization_config={"quant_method": "any"})

    assert quantisation_flags(pool(quantisation), whole) == []


def test_so_does_one_whose_language_model_is_a_part(tmp_path: Path) -> None:
    part = weights(tmp_path, text_config={"quantization_config": {"quant_method": "any"}})

    assert quantisation_flags(pool("awq"), part) == []


def test_vllm_makes_fp8_of_weights_that_are_not(tmp_path: Path) -> None:
    assert quantisation_flags(pool("fp8"), weights(tmp_path)) == ["--quantization", "fp8_per_channel"]


@pytest.mark.parametrize("quantisation", ["int8", "awq", "gptq"])
def test_what_vllm_cannot_make_is_refused(tmp_path: Path, quantisation: str) -> None:
    with pytest.raises(StartError, match=f"quantisation is {quantisation}, and the weights"):
        quantisation_flags(pool(quantisation), weights(tmp_path))


def test_weights_as_they_come_are_not_looked_at() -> None:
    assert quantisation_flags(pool(None), Path("/nowhere")) == []


def test_weights_without_a_config_say_so(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"config\.json cannot be read"):
        quantisation_flags(pool("awq"), tmp_path)
