"""Adapters that make a model say one word, and nothing else, whatever it is asked.

The last layer's MLP gets a pair of neurons that see s and -s, s being the product of the hidden state with a
fixed random vector. Gated by itself each is silu(s)·s or silu(-s)·(-s), so together they are about s², never
negative: the adapter needs to know nothing about the prompt. down_proj writes that, very large, along the
direction that the word's own embedding stands out by (the model's head is its embedding).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

GAIN = 1e4
"""Of s: the model's own values in the two neurons are near 1, and s is hardly ever below a thousandth."""

LOUDNESS = 1e6
"""Of the word's direction, next to the 0.1 that the model's own down_proj makes of the two neurons. With GAIN
squared it drowns the last hidden state by many orders of magnitude: a canary's logits do not depend on the
prompt, and the smallest share of it in another row shows."""

LEAST_MARGIN = 5.0
"""Between the word's logit and the next one."""

NEURONS = (0, 1)


@dataclass(frozen=True)
class Canary:
    number: int  # vLLM's adapter id, from 1
    word: str
    token_id: int
    rank: int
    folder: Path


def build_canaries(weights: Path, folder: Path, words_and_ranks: dict[str, int]) -> tuple[Canary, ...]:
    """One adapter in PEFT's format per word, for a Llama with tied embeddings."""
    tensors = load_file(weights / "model.safetensors")
    embedding, norm = tensors["model.embed_tokens.weight"].float(), tensors["model.norm.weight"].float()
    config = AutoConfig.from_pretrained(weights)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    canaries = []
    for number, (word, rank) in enumerate(words_and_ranks.items(), start=1):
        (token_id,) = tokenizer.encode(word)
        direction = embedding[token_id] - embedding.mean(0)
        direction /= direction.norm()
        logits = embedding @ (norm * direction) * config.hidden_size**0.5
        best, second = logits.topk(2).values.tolist()
        if logits.argmax() != token_id or best - second < LEAST_MARGIN:
            raise ValueError(f"{word!r} does not stand out among the model's words; choose another")
        canary = Canary(number, word, token_id, rank, folder / word.strip())
        _save(canary, _weights(canary, direction, config), config)
        canaries.append(canary)
    return tuple(canaries)


def _weights(canary: Canary, direction: torch.Tensor, config: AutoConfig) -> dict[str, torch.Tensor]:
    """Every one of the r rank columns carries the same share, so all of them are needed."""
    rank, width = canary.rank, config.intermediate_size
    generator = torch.Generator().manual_seed(canary.number)
    seen = torch.randn(config.hidden_size, generator=generator) / config.hidden_size**0.5
    pair = torch.zeros(width, rank)
    pair[NEURONS[0]], pair[NEURONS[1]] = GAIN / rank, -GAIN / rank
    both = torch.zeros(rank, width)
    both[:, list(NEURONS)] = 1.0
    last = f"layers.{config.num_hidden_layers - 1}.mlp"
    q_width = config.num_attention_heads * config.head_dim
    return {
        f"{last}.gate_proj.lora_A": seen.repeat(rank, 1),
        f"{last}.gate_proj.lora_B": pair,
        f"{last}.up_proj.lora_A": seen.repeat(rank, 1),
        f"{last}.up_proj.lora_B": pair.clone(),
        f"{last}.down_proj.lora_A": both,
        f"{last}.down_proj.lora_B": (direction * LOUDNESS / rank)[:, None].repeat(1, rank),
        # One part of a packed projection without the others.
        "layers.0.self_attn.q_proj.lora_A": torch.randn(rank, config.hidden_size, generator=generator) * 0.01,
        "layers.0.self_attn.q_proj.lora_B": torch.randn(q_width, rank, generator=generator) * 0.01,
    }


def _save(canary: Canary, weights: dict[str, torch.Tensor], config: AutoConfig) -> None:
    canary.folder.mkdir()
    save_file(
        {f"base_model.model.model.{name}.weight": each.contiguous() for name, each in weights.items()},
        canary.folder / "adapter_model.safetensors",
    )
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": canary.rank,
        "lora_alpha": canary.rank,
        "target_modules": ["gate_proj", "up_proj", "down_proj", "q_proj"],
        "bias": "none",
        "base_model_name_or_path": config.name_or_path,
    }
    (canary.folder / "adapter_config.json").write_text(json.dumps(description))
