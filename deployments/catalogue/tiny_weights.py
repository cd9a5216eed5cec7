"""A servable folder of an architecture at its smallest, with random weights, and a random adapter for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import safe_open

from deployments.catalogue.tiny_configs import TINY_CONFIGS

RANK = 4
ADAPTER_SPREAD = 1.0
"""Standard deviation of the adapter's weights: large, so that what it changes is far above float noise."""

VOCABULARY_MULTIPLE = 64


def write_tiny_model(architecture: str, tokenizer: Path, special_tokens: Sequence[str], folder: Path) -> None:
    """Writes safetensors, config and tokenizer into `folder`.

    `tokenizer` is a folder with the tokenizer to take, chat template included; the family's `special_tokens`
    are added to it. Raises KeyError for an architecture that has no tiny configuration."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    words.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    vocab_size = -(-len(words) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(
        **TINY_CONFIGS[architecture],
        vocab_size=vocab_size,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    model = model_class(config).to(torch.float32)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def tensor_shapes(model: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of each tensor in the safetensors of the folder `model`."""
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_slice(name).get_shape()


def write_tiny_adapter(model: Path, targets: Sequence[str], folder: Path) -> list[str]:
    """Writes a LoRA of rank `RANK` for each linear layer of `model` whose last name is in `targets`.

    Returns the names of those layers, empty if there are none."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    layers: list[str] = []
    for name, shape in tensor_shapes(model):
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] not in targets or len(shape) != 2:
            continue
        outputs, inputs = shape
        layers.append(layer)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = (
            torch.randn(RANK, inputs, generator=random) * ADAPTER_SPREAD
        )
        tensors[f"base_model.model.{layer}.lora_B.weight"] = (
            torch.randn(outputs, RANK, generator=random) * ADAPTER_SPREAD
        )
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return layers
