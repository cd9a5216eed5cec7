"""The tensors of a GGUF as bfloat16 under their transformers names, one at a time.

Only the conversion process uses this module: it needs torch and transformers, imported on call.

transformers can do all of this in `from_pretrained(gguf_file=...)`, but that asks for accelerate, holds
the model twice and unpacks with numpy on one core: 240 s for 1.8 billion parameters where this takes 10.
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
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize
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
    columns = {info.name: info.shape[-1] for info in header.tensors}

    # Many small chunks on one thread each beat torch's own threads inside each small operation.
    torch.set_num_threads(1)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for gguf_name, lazy in load_gguf_state_dict(header).items():
            stored = lazy[...]
            if lazy.ggml_type in GGML_BLOCK:
                rows = stored.reshape(-1, stored.shape[-1])
                values = torch.empty((rows.shape[0], columns[gguf_name]), dtype=torch.float32)

                def unpack(
                    start: int, rows: Any = rows, values: Any = values, kind: int = lazy.ggml_type
                ) -> None:
                    chunk = rows[start : start + _ROWS_PER_CHUNK]
                    values[start : start + _ROWS_PER_CHUNK] = dequantize(
                        chunk.reshape(-1), kind, torch.float32
                    ).reshape(chunk.shape[0], -1)

                list(pool.map(unpack, range(0, rows.shape[0], _ROWS_PER_CHUNK)))
                values = values.reshape(*stored.shape[:-1], -1)
            else:
                values = stored.to(torch.float32)
            result = processor.process(
                weights=values.numpy(), name=gguf_name, tensor_key_mapping=names, parsed_parameters=merged
            )
            if result.name in names:
                yield names[result.name], torch.from_numpy(result.weights).to(torch.bfloat16).contiguous()
    for name, tensor in merged["tensors"].items():
        yield name, tensor.to(torch.bfloat16).contiguous()
