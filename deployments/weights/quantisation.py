"""What vLLM 0.32 must be told about the quantisation of a checkpoint.

A checkpoint that was quantised says so in its `config.json`, and vLLM reads it there; naming the method as
well can only choose a slower kernel or contradict it. Of unquantised weights vLLM makes fp8 by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.config import PoolConfig
from cluster.errors import StartError

ONLINE = {"fp8": "fp8_per_channel"}
"""A scale per output channel for weights, per token for activations."""


def quantisation_flags(pool: PoolConfig, weights: Path) -> list[str]:
    """Flags of `vllm serve`. Raises StartError where the weights are not what the YAML says."""
    if pool.quantisation is None or _is_quantised(weights):
        return []
    if pool.quantisation not in ONLINE:
        raise StartError(
            f"{pool.base_model}: quantisation is {pool.quantisation}, and the weights in {weights} are not "
            f"quantised. Name a checkpoint that is, or use quantisation: {' or '.join(ONLINE)}, which vLLM "
            "does while it loads."
        )
    return ["--quantization", ONLINE[pool.quantisation]]


def _is_quantised(weights: Path) -> bool:
    try:
        config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(
            f"{weights / 'config.json'} cannot be read: {error}. Fetch the weights again."
        ) from error
    # Models of several parts keep the language model's settings one level down.
    return any("quantization_config" in each for each in (config, config.get("text_config") or {}))
