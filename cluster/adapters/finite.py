"""Whether all weights are numbers.

An adapter with a NaN is refused, not warned about: every answer through it is garbage, and that is known
before the first call. Tested on the bits, as numpy has no bfloat16: what has an exponent of ones only is
infinite or no number.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cluster.adapters.errors import AdapterRefused
from cluster.adapters.safetensors_header import TensorEntry, read_bytes
from cluster.adapters.version import shown

_CHUNK_BYTES = 4 * 2**20  # a multiple of every type's bytes

# dtype → unsigned integers of its size, and the bits of its exponent.
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F80_0000),
}


def check_finite(path: Path, tensors: Iterable[TensorEntry]) -> None:
    """Reads all weights once, a few MB at a time. Raises AdapterRefused; OSError."""
    for tensor in tensors:
        if tensor.dtype not in _EXPONENTS:
            continue
        integers, exponent = _EXPONENTS[tensor.dtype]
        for chunk in read_bytes(path, tensor, _CHUNK_BYTES):
            bits = np.frombuffer(chunk, dtype=np.dtype(integers).newbyteorder("<"))
            if np.any((bits & integers(exponent)) == exponent):
                raise AdapterRefused(
                    f"{path.name}: tensor {shown(tensor.name)} has weights that are NaN or infinite, so its "
                    "answers would be garbage. Train it again with a lower learning rate."
                )
