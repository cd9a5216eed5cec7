"""The header of a safetensors file: names, types and shapes, without a single weight.

Format: 8 bytes, little endian: N. N bytes of JSON: name → {dtype, shape, data_offsets: [begin, end)}, offsets
counted from the end of the header. Then the tensors, without holes or overlaps.
Source: https://github.com/huggingface/safetensors#format

Read by ourselves because the file is foreign: memory is bounded before anything is parsed, and each fault
gets its sentence. What passes here also opens in the safetensors library (tests/property).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cluster.adapters.errors import AdapterCorrupt
from cluster.adapters.version import shown

MAX_HEADER_BYTES = 16 * 2**20
"""Far above any model: 150 bytes per tensor, so 100,000 tensors. The library allows 100 MB."""

LENGTH_BYTES = 8
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**40
MAX_NAME = 512

_DTYPES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("U16", "I16", "F16", "BF16"),
    32: ("U32", "I32", "F32"),
    64: ("U64", "I64", "F64", "C64"),
}
DTYPE_BITS = {dtype: bits for bits, dtypes in _DTYPES_BY_BITS.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies. `begin` and `end` count from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """By name, in the order of the file. Raises AdapterCorrupt with the fault; OSError."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        return _parsed(file, file_bytes, path.name)


def _parsed(file: BinaryIO, file_bytes: int, name: str) -> dict[str, TensorEntry]:
    if file_bytes < LENGTH_BYTES:
        raise AdapterCorrupt(f"{name} has {file_bytes} bytes, which is no safetensors file. Copy it again.")
    header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise AdapterCorrupt(
            f"{name} announces a header of {header_bytes} bytes, above {MAX_HEADER_BYTES}: it is no "
            "safetensors file, or a damaged one. Save the weights as safetensors again."
        )
    begin = LENGTH_BYTES + header_bytes
    if begin > file_bytes:
        raise AdapterCorrupt(
            f"{name} is truncated: its header ends at byte {begin}, the file at {file_bytes}. Copy it again."
        )
    described = _json_object(file.read(header_bytes), name)
    described.pop("__metadata__", None)
    entries = [_entry(tensor, fields, begin, name) for tensor, fields in described.items()]
    _check_layout(entries, begin, file_bytes, name)
    return {entry.name: entry for entry in entries}


def _json_object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        # The library refuses these too, and a duplicate would let two readers see two files.
        found = json.loads(raw.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(
            f"{name} has a header that cannot be read ({_first_line(error)}). Save the weights as "
            "safetensors again."
        ) from error
    if not isinstance(found, dict):
        raise AdapterCorrupt(f"{name} has a header that is no JSON object. Save the weights again.")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _entry(tensor: str, fields: Any, data_begin: int, name: str) -> TensorEntry:
    def faulty(what: str) -> AdapterCorrupt:
        return AdapterCorrupt(f"{name}: tensor {shown(tensor)} has {what}. Save the weights again.")

    if len(tensor) > MAX_NAME:
        raise faulty(f"a name of {len(tensor)} characters")
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise faulty("no dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise faulty(f"the unknown type {shown(str(dtype))}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise faulty("a shape that is none")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise faulty("offsets that are none")
    if math.prod(shape) * DTYPE_BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise faulty(f"{offsets[1] - offsets[0]} bytes, which is not what {dtype} of its shape takes")
    return TensorEntry(tensor, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_counts(values: Any) -> bool:
    """A list of plain whole numbers; JSON's `true` is none, and neither is one beyond any file."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= MAX_DIMENSION for value in values
    )


def _check_layout(entries: list[TensorEntry], data_begin: int, file_bytes: int, name: str) -> None:
    end = data_begin
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise AdapterCorrupt(
                f"{name}: tensor {shown(entry.name)} does not begin where the one before ends. Save the "
                "weights again."
            )
        end = entry.end
    if end > file_bytes:
        raise AdapterCorrupt(
            f"{name} is truncated: its last tensor ends at byte {end}, the file at {file_bytes}. Copy it "
            "again."
        )
    if end < file_bytes:
        raise AdapterCorrupt(
            f"{name} has {file_bytes - end} bytes behind its last tensor. Save the weights again."
        )


def read_bytes(path: Path, entry: TensorEntry, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes of one tensor, in pieces. Raises OSError."""
    with path.open("rb") as file:
        file.seek(entry.begin)
        left = entry.end - entry.begin
        while left and (chunk := file.read(min(left, chunk_bytes))):
            left -= len(chunk)
            yield chunk
