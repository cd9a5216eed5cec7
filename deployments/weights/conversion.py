"""A GGUF becomes a safetensors folder. Runs in the process that `convert.py` starts, and only there.

The folder loads in transformers and vLLM: bfloat16 shards, config, generation config, tokenizer and
chat template.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.weights.disk import in_gb
from deployments.weights.errors import WeightsError
from deployments.weights.tensors import bfloat16_tensors

_SHARD_BYTES = 1024**3  # also what the process holds besides the tensor at hand

_OTHER_SOURCE = "Use another GGUF of this base model, or an hf: or folder: source with safetensors."


def write_model_folder(gguf: Path, folder: Path, name: str, on_bytes: Callable[[int, int], None]) -> str:
    """Writes the converted model into the empty `folder`; returns the version of transformers.

    `on_bytes(done, total)` counts bytes of weights. Raises WeightsError for what cannot be converted.
    """
    import torch
    import transformers

    # transformers wants a folder and a file name inside it.
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        config = transformers.AutoConfig.from_pretrained(**where)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise WeightsError(
            f"{name}: transformers {transformers.__version__} cannot read {gguf.name}: {error}",
            fix=_OTHER_SOURCE,
        ) from error

    _require_memory(name, model)
    _write_shards(gguf, folder, name, model, on_bytes)

    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _tokenizer(where, config.model_type).save_pretrained(folder)
    return str(transformers.__version__)


def _tokenizer(where: dict[str, str], model_type: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    # Naming the type spares AutoTokenizer a second walk through the metadata: 12 s for a 150k vocabulary.
    known = {"tokenizer_type": model_type} if TOKENIZER_MAPPING_NAMES.get(model_type) else {}
    tokenizer = AutoTokenizer.from_pretrained(**where, **known)
    for how_it_was_loaded in ("is_local", "local_files_only"):  # would be saved as if it were a setting
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    return tokenizer


def _require_memory(name: str, model: Any) -> None:
    import psutil

    sizes = [parameter.numel() for parameter in model.parameters()]
    # One shard, and the largest tensor as stored, as two float32 copies and as the result.
    needed_bytes = min(_SHARD_BYTES, 2 * sum(sizes)) + 12 * max(sizes)
    available_bytes = psutil.virtual_memory().available
    if available_bytes < needed_bytes:
        raise WeightsError(
            f"{name}: converting needs about {in_gb(needed_bytes)} of memory, "
            f"{in_gb(available_bytes)} are available",
            fix="Stop other programs on this machine, or convert on a larger one and use a folder: source.",
        )


def _write_shards(
    gguf: Path, folder: Path, name: str, model: Any, on_bytes: Callable[[int, int], None]
) -> None:
    from safetensors.torch import save_file

    # A tied parameter is listed once, under the name that the file is expected to hold.
    awaited = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    total_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    done_bytes = 0
    shards: list[list[str]] = []
    shard: dict[str, Any] = {}
    shard_bytes = 0

    def flush() -> None:
        nonlocal shard, shard_bytes
        path = folder / f"shard-{len(shards)}"
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it private; the cache is shared like any other file
        shards.append(list(shard))
        shard, shard_bytes = {}, 0

    for key, tensor in bfloat16_tensors(str(gguf), model):
        shape = awaited.pop(key, None)
        if shape is None:
            continue  # the second name of a tied parameter
        if shape != tuple(tensor.shape):
            raise WeightsError(
                f"{name}: {key} in {gguf.name} has shape {tuple(tensor.shape)}, not {shape}",
                fix=_OTHER_SOURCE,
            )
        if shard and shard_bytes + tensor.nbytes > _SHARD_BYTES:
            flush()
        shard[key] = tensor
        shard_bytes += tensor.nbytes
        done_bytes += tensor.nbytes
        on_bytes(done_bytes, total_bytes)
    flush()
    if awaited:
        raise WeightsError(
            f"{name}: {gguf.name} lacks {len(awaited)} parameters of the architecture, first {min(awaited)}",
            fix=_OTHER_SOURCE,
        )
    _name_shards(folder, shards, done_bytes)


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Gives the shards the names that say how many there are, and writes the index that vLLM reads."""
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, keys in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file_name)
        places |= dict.fromkeys(keys, file_name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
