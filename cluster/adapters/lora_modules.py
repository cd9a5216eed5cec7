"""The pairs of matrices in an adapter's weights: which module they change, and of what shape.

For a module of the base model with weight [out, in]: lora_A is [rank, in], lora_B is [out, rank]. For an
embedding [vocabulary, hidden]: lora_embedding_A is [rank, vocabulary], lora_embedding_B is [hidden, rank].
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.adapters.content import WEIGHTS_FILE
from cluster.adapters.errors import AdapterRefused
from cluster.adapters.lora_config import LoraConfig
from cluster.adapters.safetensors_header import TensorEntry
from cluster.adapters.version import shown

WEIGHT_DTYPES = frozenset({"F16", "BF16", "F32"})

_PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>[\w.-]+)\.lora_(?P<side>[AB])\.weight")
_EMBEDDING = re.compile(r"(?P<module>[\w.-]+)\.lora_embedding_(?P<side>[AB])")
_BASE_EMBEDDING = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Copies of the base model's own embedding that PEFT may save; the engine passes over them."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """`name` as in the base model: model.layers.0.self_attn.q_proj."""

    name: str
    rank: int
    in_features: int
    out_features: int

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


def lora_modules(tensors: Iterable[TensorEntry], config: LoraConfig) -> tuple[LoraModule, ...]:
    """In the order of the file. Raises AdapterRefused: a tensor that is no half of a pair, a half without the
    other, a rank that is not the configuration's."""
    halves: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for tensor in tensors:
        if tensor.name.endswith(_BASE_EMBEDDING):
            continue
        module, side = _module_and_side(tensor.name)
        if tensor.dtype not in WEIGHT_DTYPES:
            raise AdapterRefused(
                f"{WEIGHTS_FILE}: tensor {shown(tensor.name)} is {tensor.dtype}. Save the adapter in one of "
                f"{', '.join(sorted(WEIGHT_DTYPES))}."
            )
        halves[module][side] = tensor.shape
    if not halves:
        raise AdapterRefused(f"{WEIGHTS_FILE} holds no LoRA weights. Save the trained adapter again.")
    return tuple(_pair(module, shapes, config.rank_of(module)) for module, shapes in halves.items())


def _module_and_side(tensor: str) -> tuple[str, str]:
    match = _LINEAR.fullmatch(tensor) or _EMBEDDING.fullmatch(tensor)
    if match is None:
        raise AdapterRefused(
            f"{WEIGHTS_FILE}: tensor {shown(tensor)} is neither lora_A nor lora_B of a module, so it cannot "
            "be served. Save a plain LoRA adapter with PEFT's save_pretrained."
        )
    embedding = match.re is _EMBEDDING
    side = match["side"]
    return match["module"].removeprefix(_PREFIX), f"embedding_{side}" if embedding else side


def _pair(module: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> LoraModule:
    a, b = shapes.get("A"), shapes.get("B")
    embedding = a is None and b is None
    if embedding:
        a, b = shapes.get("embedding_A"), shapes.get("embedding_B")
    if a is None or b is None or len(shapes) > 2 or len(a) != 2 or len(b) != 2:
        raise AdapterRefused(
            f"{WEIGHTS_FILE}: module {shown(module)} has not exactly one matrix A and one matrix B. Save the "
            "adapter again."
        )
    if a[0] != rank or b[1] != rank:
        raise AdapterRefused(
            f"{WEIGHTS_FILE}: module {shown(module)} has A of {list(a)} and B of {list(b)}, which is not the "
            f"rank {rank} that its configuration says. Save the adapter again."
        )
    return LoraModule(module, rank, in_features=a[1], out_features=b[0])
