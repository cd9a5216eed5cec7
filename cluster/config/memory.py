"""What a replica needs of memory, with the arithmetic, and whether its node class declares as much.

On a node without cards all of it is main memory. With cards it is what each card has to hold: tensor-parallel
ranks share weights and KV cache evenly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.config.schema import BaseModelConfig, ClusterConfig, NodeClass, PoolConfig

GIB = 2**30
ENGINE_OVERHEAD_BYTES = int(3.0 * GIB)
"""Replica process, engine core and worker with torch loaded: 0.8 + 0.7 + 1.5 GB measured with a 135M
model on CPU (GATEWAY.md)."""

CUDA_OVERHEAD_BYTES = 1 * GIB
"""CUDA context, CUDA graphs and the activations of a prefill step, on each card: a declared estimate."""

CPU_REPACKED_SHARE = 4
"""A quarter more for weights that the CPU backend repacks: 12.2 GiB measured in all for 6.6 GiB of them."""

SIMULATED_BYTES = GIB // 4

LAYER_RATIO = 100
"""Hidden size over number of layers: 73 to 114 in Qwen3-1.7B, Qwen3-8B and Qwen2.5-72B."""

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}

BITS_PER_QUANTISED_WEIGHT = {
    "fp8": 8.0,
    "int8": 8.0,
    "awq": 4 + (16 + 4) / 128,  # groups of 128 with a scale of 16 bits and a zero point of 4
    "gptq": 4 + (16 + 4) / 128,
}


@dataclass(frozen=True, slots=True)
class ReplicaMemory:
    """What one replica needs: of each card where it has cards, else of main memory."""

    weights_bytes: int
    weights_as: str
    """dtype or quantisation; the engine where that has no weights here"""
    kv_cache_bytes: int
    overhead_bytes: int
    on_cards: bool
    adapters_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.adapters_bytes + self.overhead_bytes

    @property
    def arithmetic(self) -> str:
        """The sum in GiB, for people."""
        if not self.weights_bytes:
            return f"{self.weights_as} engine"
        adapters = f" + {self.adapters_bytes / GIB:.1f} adapters" if self.adapters_bytes else ""
        return (
            f"{self.weights_bytes / GIB:.1f} weights as {self.weights_as}"
            f" + {self.kv_cache_bytes / GIB:.1f} KV cache{adapters}"
            f" + {self.overhead_bytes / GIB:.1f} {'CUDA and activations' if self.on_cards else 'engine'}"
        )


def replica_memory(pool: PoolConfig, model: BaseModelConfig) -> ReplicaMemory:
    """Upper estimate. An upstream pool needs none: its engine is elsewhere."""
    on_cards = pool.gpus_per_replica > 0
    if pool.engine != "vllm":
        overhead = SIMULATED_BYTES if pool.engine == "simulated" else 0
        return ReplicaMemory(0, pool.engine, 0, overhead, on_cards=False)
    weights = weights_bytes(pool, model) // pool.tensor_parallel
    kv_cache = max(int(pool.kv_cache_gib * GIB), one_context_bytes(pool, model))
    overhead = CUDA_OVERHEAD_BYTES if on_cards else ENGINE_OVERHEAD_BYTES + weights // CPU_REPACKED_SHARE
    places = pool.slots_for_adapters if on_cards else pool.slots_for_adapters + pool.adapters_on_host
    return ReplicaMemory(
        weights_bytes=weights,
        weights_as=pool.quantisation or pool.dtype,
        kv_cache_bytes=kv_cache,
        overhead_bytes=overhead,
        on_cards=on_cards,
        adapters_bytes=places * adapter_bytes(pool, model),
    )


def replica_memory_bytes(pool: PoolConfig, model: BaseModelConfig) -> int:
    return replica_memory(pool, model).total_bytes


def weights_bytes(pool: PoolConfig, model: BaseModelConfig) -> int:
    """Of the whole model. Quantisation leaves embeddings and output head in `dtype`."""
    width = BYTES_PER_WEIGHT[pool.dtype]
    if pool.quantisation is None:
        return model.parameters * width
    kept = vocabulary_weights(model.parameters)
    quantised = model.parameters - kept
    return kept * width + int(quantised * BITS_PER_QUANTISED_WEIGHT[pool.quantisation] / 8)


def vocabulary_weights(parameters: int) -> int:
    """About how many of the weights are embeddings and output head, at most.

    Twice 152,000 tokens (Qwen's vocabulary). Qwen3-8B: 1.24e9 by its configuration, 1.24e9 by this;
    Qwen2.5-72B: 2.49e9 and 2.57e9.
    """
    return min(parameters, int(2 * 152_000 * hidden_size(parameters)))


def adapter_bytes(pool: PoolConfig, model: BaseModelConfig) -> int:
    """Of one place for an adapter of the pool's `max_rank` on every linear layer, which is what vLLM sets
    aside: rank x (inputs + outputs), about 20 h per layer. Qwen3-8B at rank 16: 87 MB by its configuration,
    109 by this.
    """
    hidden = hidden_size(model.parameters)
    return int(pool.max_rank * 20 * hidden * (hidden / LAYER_RATIO)) * BYTES_PER_WEIGHT[pool.dtype]


def hidden_size(parameters: int) -> float:
    """Of a transformer with that many weights: 12 h² in a layer, h/100 layers."""
    return float((parameters / (12 / LAYER_RATIO)) ** (1 / 3))


def one_context_bytes(pool: PoolConfig, model: BaseModelConfig) -> int:
    """KV cache of one call of full length, per rank; 0 where it is not known. vLLM starts with no less."""
    return pool.context_tokens * (model.kv_bytes_per_token or 0) // pool.tensor_parallel


def kv_cache_problem(pool: PoolConfig, model: BaseModelConfig) -> tuple[str, str] | None:
    """What is wrong and the fix when the KV cache of a replica without cards cannot hold one whole context.
    With cards vLLM takes what the weights leave."""
    one_context = one_context_bytes(pool, model)
    if pool.engine != "vllm" or pool.gpus_per_replica > 0 or one_context <= pool.kv_cache_gib * GIB:
        return None
    longest = int(pool.kv_cache_gib * GIB) // (model.kv_bytes_per_token or 1)
    wrong = (
        f"one call of {pool.context_tokens} tokens takes {one_context / GIB:.2f} GiB of KV cache"
        f" ({model.kv_bytes_per_token} bytes per token), kv_cache_gib gives {pool.kv_cache_gib:g}"
    )
    enough_gib = math.ceil(one_context / GIB * 10) / 10
    return wrong, f"set kv_cache_gib: {enough_gib:g}, or context_tokens to at most {longest}"


def usable_bytes(pool: PoolConfig, node: NodeClass) -> int | None:
    """What the class declares that a replica may take: of a card's memory the pool's share of it, else main
    memory. None: not declared."""
    if pool.gpus_per_replica > 0:
        return None if node.gpu_memory_gib is None else int(node.gpu_memory_gib * pool.gpu_memory_share * GIB)
    return None if node.memory_gib is None else int(node.memory_gib * GIB)


def classes_that_fit(
    pool: PoolConfig, model: BaseModelConfig, node_classes: Mapping[str, NodeClass]
) -> tuple[str, ...]:
    """Those that declare enough memory for one replica."""
    need = replica_memory_bytes(pool, model)
    return tuple(
        name
        for name, node in node_classes.items()
        if (usable := usable_bytes(pool, node)) is not None and need <= usable
    )


def class_problem(config: ClusterConfig, pool_name: str) -> tuple[str, str] | None:
    """What is wrong and the fix, with the arithmetic, when a replica does not fit what its node class
    declares; None when it does, or when nothing is declared."""
    pool = config.pools[pool_name]
    node = config.node_classes[pool.node_class]
    model = config.base_models[pool.base_model]
    usable = usable_bytes(pool, node)
    need = replica_memory(pool, model)
    if usable is None or need.total_bytes <= usable:
        return None
    if need.on_cards:
        per = " of each card" if pool.tensor_parallel > 1 else " of a card"
        share = f"{pool.gpu_memory_share:g} of its {node.gpu_memory_gib:g} GiB is {usable / GIB:.1f}"
    else:
        per, share = "", f"a node has {usable / GIB:.1f}"
    fitting = classes_that_fit(pool, model, config.node_classes)
    wrong = (
        f"a replica of {pool.base_model!r} needs about {need.total_bytes / GIB:.1f} GiB{per}"
        f" ({need.arithmetic}); node class {pool.node_class!r}: {share}"
    )
    fix = (
        "use a smaller model, quantisation, a lower kv_cache_gib or context_tokens"
        + (", more tensor_parallel" if need.on_cards else "")
        + (f", or node_class {' or '.join(fitting)}" if fitting else "; no other node class fits either")
    )
    return wrong, fix
