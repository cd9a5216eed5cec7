"""`sprat_weights.json`: what a ready folder holds and where it came from.

Written last, before the folder gets its final name, so its presence says that the folder is complete.
Reads safetensors headers itself, so that asking needs neither torch nor safetensors.
"""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

RECORD_NAME = "sprat_weights.json"

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors to torch


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """The content of `sprat_weights.json`."""

    source: str
    gguf_sha256: str | None  # None: the weights were safetensors from the start
    parameters: int
    dtype: str  # of most parameters: `bfloat16`
    bytes: int  # all files of the folder, without the record
    files: dict[str, int]  # name to bytes
    converted_at: str  # ISO 8601, UTC
    transformers: str | None  # the version that converted; None: nothing was converted


def write_record(
    folder: Path, *, source: str, gguf_sha256: str | None, transformers: str | None
) -> WeightsRecord:
    """Describes the files now in `folder` and writes the record beside them."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD_NAME
    }
    elements = _elements_by_dtype(folder)
    record = WeightsRecord(
        source=source,
        gguf_sha256=gguf_sha256,
        parameters=elements.total(),
        dtype=_dtype_name(elements),
        bytes=sum(files.values()),
        files=files,
        converted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        transformers=transformers,
    )
    (folder / RECORD_NAME).write_text(json.dumps(asdict(record), indent=2) + "\n")
    return record


def read_record(folder: Path) -> WeightsRecord | None:
    """The record of a complete folder; None where it is absent, unreadable or a file lost bytes."""
    try:
        record = WeightsRecord(**json.loads((folder / RECORD_NAME).read_text()))
        for name, size_bytes in record.files.items():
            if (folder / name).stat().st_size != size_bytes:
                return None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return record


def _dtype_name(elements: Counter[str]) -> str:
    most = elements.most_common(1)[0][0] if elements else "none"
    return _DTYPE_NAMES.get(most, most.lower())


def _elements_by_dtype(folder: Path) -> Counter[str]:
    elements: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        for name, tensor in header.items():
            if name != "__metadata__":
                elements[tensor["dtype"]] += math.prod(tensor["shape"])
    return elements
