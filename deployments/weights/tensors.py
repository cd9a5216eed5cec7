"""The tensors of a GGUF as bfloat16 under their transformers names, one at a time.

Only the conversion process uses this module: it needs torch and transformers, imported on call.

transformers can do all of this in `from_pretrained(gguf_file=...)`, but that asks for accelerate, holds
the whole model and unpacks it with numpy: minutes for 1.8 billion parameters, where this takes seconds.
The unpacking and the name mapping are still those of transformers; the values are bit-equal.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_ROWS_PER_CHUNK = 1024  # a few MB of temporaries: they stay in the processor's cache


def bfloat16_tensors(gguf: str, model: Any) -> Iterator[tuple[str, Any]]:
    """Yields (parameter name, tensor) in file order; `model` is on the meta device and names them.

    Tensors that the architecture merges (mixture of experts) come last.
    """
    try:
        yield from _fast_tensors(gguf, model)
    except (ImportError, _NotCoveredError):
        # Types such as Q5_0, and transformers before 5.17: its first loader, slower and all at once.
        import torch
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        loaded = load_gguf_checkpoint(
            gguf, return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
        )
        tensors = loaded["tensors"]
        for name in list(tensors):
            yield name, tensors.pop(name).to(torch.bfloat16).contiguous()


class _NotCoveredError(Exception):
    """The fast reader cannot read this file. Raised before the first tensor, so that nothing comes twice."""


def _fast_tensors(gguf: str, model: Any) -> Iterator[tuple[str, Any]]:
    import torch
    from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    try:
        header = GgufHeader.from_file(gguf)
    except ValueError as error:
        raise _NotCoveredError(str(error)) from error

    config = model.config.to_dict()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config)
    names = get_gguf_hf_weights_map(model, processor)
    merged: dict[str, Any] = {"config": config, "tensors": {}}

    # Many small chunks on one thread each beat torch's own threads inside each small operation.
    torch.set_num_threads(1)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for gguf_name, stored in load_gguf_state_dict(header).items():
            # The architecture's own step undoes what llama.cpp did to the layout, on float32 arrays.
            result = processor.process(
                weights=_unpacked(stored[...], stored.ggml_type, pool).numpy(),
                name=gguf_name,
                tensor_key_mapping=names,
                parsed_parameters=merged,
            )
            if result.name in names:
                yield names[result.name], torch.from_numpy(result.weights).to(torch.bfloat16).contiguous()
    for name, tensor in merged["tensors"].items():
        yield name, tensor.to(torch.bfloat16).contiguous()


def _unpacked(stored: Any, ggml_type: int, pool: ThreadPoolExecutor) -> Any:
    """A tensor as it lies in the file (plain floats, or rows of quantised blocks as bytes), in float32."""
    import torch
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

    if ggml_type not in GGML_BLOCK:
        return stored.to(torch.float32)
    block_elements, block_bytes = GGML_BLOCK[ggml_type]
    columns = stored.shape[-1] // block_bytes * block_elements
    rows = stored.reshape(-1, stored.shape[-1])
    values = torch.empty((rows.shape[0], columns), dtype=torch.float32)

    def unpack(start: int) -> None:
        chunk = rows[start : start + _ROWS_PER_CHUNK]
        floats = dequantize(chunk.reshape(-1), ggml_type, torch.float32)
        values[start : start + _ROWS_PER_CHUNK] = floats.reshape(chunk.shape[0], columns)

    list(pool.map(unpack, range(0, rows.shape[0], _ROWS_PER_CHUNK)))  # the list raises what a chunk raised
    return values.reshape(*stored.shape[:-1], columns)
