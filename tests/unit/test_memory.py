"""The estimate of a replica's memory, and what is said when it does not fit the node class."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import BaseModelConfig, ConfigProblems, PoolConfig
from cluster.config.memory import (
    GIB,
    classes_that_fit,
    one_context_bytes,
    replica_memory,
    vocabulary_weights,
    weights_bytes,
)
from tests.configs import config_of, simulated

QWEN3_8B = BaseModelConfig(
    source="hf:Qwen/Qwen3-8B@main", parameters=8_190_735_360, kv_bytes_per_token=147_456
)
QWEN25_72B = BaseModelConfig(source="hf:Qwen/Qwen2.5-72B-Instruct@main", parameters=72_706_203_648)


def pool(**changes: Any) -> PoolConfig:
    fields = {
        "tier": "small",
        "base_model": "m",
        "node_class": "card",
        "context_tokens": 8192,
        "dtype": "bfloat16",
        "gpus": 1,
        "throughput": {"prompt_tokens_per_s": 1, "output_tokens_per_s": 1},
    }
    return PoolConfig.model_validate(fields | changes)


def real(**changes: Any) -> dict[str, Any]:
    """A YAML whose large pool is a real Qwen3-8B on cards of 24 GB."""
    return simulated(
        **{
            "node_classes__big__gpu_memory_gib": 22.5,
            "base_models__huge": QWEN3_8B.model_dump(exclude_none=True),
            "pools__reserve__engine": "vllm",
            "pools__reserve__simulated": None,
            "pools__reserve__dtype": "bfloat16",
            "pools__reserve__gpus": 1,
            "pools__reserve__context_tokens": 8192,
            **changes,
        }
    )


def problems_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigProblems) as refused:
        config_of(raw)
    return str(refused.value)


def test_weights_take_their_width() -> None:
    assert weights_bytes(pool(), QWEN3_8B) == 2 * QWEN3_8B.parameters
    assert weights_bytes(pool(dtype="float32"), QWEN3_8B) == 4 * QWEN3_8B.parameters


@pytest.mark.parametrize(
    ("model", "quantisation", "least_gb", "most_gb"),
    [
        # Sizes of the published checkpoints: 6.1, 41.6 and 9.4 GB.
        (QWEN3_8B, "awq", 5.9, 6.4),
        (QWEN25_72B, "awq", 40.5, 43.0),
        (QWEN3_8B, "fp8", 9.0, 9.8),
    ],
)
def test_quantised_weights_keep_embeddings_and_head_in_16_bit(
    model: BaseModelConfig, quantisation: str, least_gb: float, most_gb: float
) -> None:
    assert least_gb < weights_bytes(pool(quantisation=quantisation), model) / 1e9 < most_gb


def test_the_vocabulary_is_never_more_than_the_model() -> None:
    assert vocabulary_weights(1000) == 1000
    # By the configurations: 2 x 151,936 x 4,096 and 2 x 152,064 x 8,192.
    assert vocabulary_weights(QWEN3_8B.parameters) == pytest.approx(1.245e9, rel=0.03)
    assert vocabulary_weights(QWEN25_72B.parameters) == pytest.approx(2.491e9, rel=0.05)


def test_ranks_share_weights_and_cache() -> None:
    whole, half = (replica_memory(pool(tensor_parallel=ranks, gpus=ranks), QWEN3_8B) for ranks in (1, 2))

    assert half.weights_bytes == whole.weights_bytes // 2
    assert one_context_bytes(pool(tensor_parallel=2, gpus=2), QWEN3_8B) == 8192 * 147_456 // 2


def test_the_cache_holds_one_whole_context_at_least() -> None:
    assert replica_memory(pool(kv_cache_gib=0.1), QWEN3_8B).kv_cache_bytes == 8192 * 147_456
    assert replica_memory(pool(kv_cache_gib=4), QWEN3_8B).kv_cache_bytes == 4 * GIB


def test_a_pool_that_fits_is_accepted() -> None:
    config_of(real())  # 15.3 + 1.1 + 1.0 of 20.25 GiB


def test_a_pool_that_does_not_fit_its_cards_is_refused_with_the_arithmetic() -> None:
    said = problems_of(real(node_classes__big__gpu_memory_gib=16))

    assert "pools.reserve" in said
    assert "needs about 17.4 GiB of a card" in said
    assert "(15.3 weights as bfloat16 + 1.1 KV cache + 1.0 CUDA and activations)" in said
    assert "0.9 of its 16 GiB is 14.4" in said
    assert "no other node class fits either" in said


def test_the_node_class_that_would_fit_is_named() -> None:
    raw = real(node_classes__big__gpu_memory_gib=16)
    raw["node_classes"]["h100"] = {"gpu_memory_gib": 79.6, "usd_per_hour": 3}

    assert "or node_class h100" in problems_of(raw)


def test_quantisation_or_more_ranks_make_it_fit() -> None:
    config_of(real(node_classes__big__gpu_memory_gib=16, pools__reserve__quantisation="awq"))
    config_of(
        real(
            node_classes__big__gpu_memory_gib=16,
            pools__reserve__tensor_parallel=2,
            pools__reserve__gpus=2,
        )
    )


def test_a_replica_without_cards_is_measured_by_main_memory() -> None:
    said = problems_of(
        real(pools__reserve__gpus=0, node_classes__big__memory_gib=16, pools__reserve__kv_cache_gib=2)
    )

    assert "node class 'big': a node has 16.0" in said
    assert "engine" in said


def test_a_cache_too_small_for_one_call_is_refused_before_vllm_does() -> None:
    said = problems_of(real(pools__reserve__gpus=0, pools__reserve__kv_cache_gib=1))

    assert "one call of 8192 tokens takes 1.12 GiB of KV cache (147456 bytes per token)" in said
    assert "set kv_cache_gib: 1.2, or context_tokens to at most 7281" in said


def test_classes_that_declare_nothing_are_not_called_fitting() -> None:
    config = config_of(real())

    assert classes_that_fit(config.pools["reserve"], QWEN3_8B, config.node_classes) == ("big",)


def test_a_simulated_pool_fits_nearly_anywhere() -> None:
    config_of(simulated(node_classes__big__memory_gib=0.5))


def test_places_for_adapters_are_counted() -> None:
    """Rank 16 on all linear layers of Qwen3-8B is 87.3 MB by its configuration."""
    without, with_slots = (replica_memory(pool(adapter_slots=slots), QWEN3_8B) for slots in (0, 16))

    assert without.adapters_bytes == 0
    assert 16 * 87.3e6 < with_slots.adapters_bytes < 16 * 120e6
    assert "adapters" in with_slots.arithmetic


def test_without_cards_adapters_of_main_memory_are_counted_too() -> None:
    on_host = replica_memory(pool(gpus=0, adapter_slots=4, host_adapters=40), QWEN3_8B).adapters_bytes

    assert on_host == 44 * replica_memory(pool(adapter_slots=1), QWEN3_8B).adapters_bytes
