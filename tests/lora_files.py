"""Adapters and base models on disk, small enough for one per test. Written without the code under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS = 8, 16, 2

SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
"""Weights [out, in] of one layer of the base model here."""

_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {
            "dtype": _DTYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for values in tensors.values():
            file.write(values.tobytes())


def lora_tensors(
    rank: int = 4, *, modules: tuple[str, ...] = tuple(SHAPES), seed: int = 0, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """As PEFT names them, for all layers."""
    random = np.random.default_rng(seed)
    found = {}
    for layer in range(LAYERS):
        for module in modules:
            out_features, in_features = SHAPES[module]
            place = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{place}.lora_A.weight"] = random.standard_normal((rank, in_features)).astype(dtype)
            found[f"{place}.lora_B.weight"] = random.standard_normal((out_features, rank)).astype(dtype)
    return found


def write_adapter(
    folder: Path,
    tensors: dict[str, np.ndarray] | None = None,
    *,
    rank: int = 4,
    seed: int = 0,
    **config: Any,
) -> Path:
    """`config` changes what adapter_config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [module.rpartition(".")[2] for module in SHAPES],
        "bias": "none",
        "base_model_name_or_path": "org/small-base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    write_safetensors(
        folder / "adapter_model.safetensors", lora_tensors(rank, seed=seed) if tensors is None else tensors
    )
    return folder


def write_base(folder: Path, *, hidden: int = HIDDEN) -> Path:
    """Only the weights: shapes that fit `write_adapter` with the hidden size as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": np.zeros((32, hidden), "float32")}
    for layer in range(LAYERS):
        for module, (out_features, in_features) in SHAPES.items():
            wider = hidden // HIDDEN
            tensors[f"model.layers.{layer}.{module}.weight"] = np.zeros(
                (out_features * wider, in_features * wider), "float32"
            )
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(hidden, "float32")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder
