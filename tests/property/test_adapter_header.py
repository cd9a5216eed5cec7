"""Whatever bytes claim to be an adapter: an answer, soon, and in bounded memory."""

from __future__ import annotations

import json
import resource
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.adapters.errors import AdapterProblem
from cluster.adapters.folder import check_folder
from cluster.adapters.safetensors_header import MAX_HEADER_BYTES, TensorEntry, read_header
from tests.lora_files import write_adapter
from tests.processes import at_once

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.integers(-2, 20) | st.integers(0, 2**70) | st.booleans() | st.floats()
TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F4", "F31", ""]) | JSON,
        "shape": st.lists(NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS, max_size=3) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=20), TENSORS | JSON, max_size=5)


def as_file(header: Any, data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


FILES = (
    st.binary(max_size=400)
    | st.builds(
        lambda raw, data: struct.pack("<Q", len(raw)) + raw + data, st.binary(max_size=200), st.binary()
    )
    | st.builds(as_file, HEADERS, st.binary(max_size=64))
)


def read(raw: bytes) -> dict[str, TensorEntry] | None:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(raw)
        file.flush()
        try:
            return read_header(Path(file.name))
        except AdapterProblem:
            return None


@settings(max_examples=400)
@given(raw=FILES)
@example(raw=struct.pack("<Q", 2) + b"{}")
def test_any_bytes_are_read_or_refused_as_the_library_does(raw: bytes) -> None:
    """What we take the library takes: the engine reads with the library what we have checked."""
    safetensors = pytest.importorskip("safetensors", reason="comes with transformers")

    ours = read(raw)

    if ours is not None:
        theirs = dict(safetensors.deserialize(raw))
        assert theirs.keys() == ours.keys()
        assert {name: tuple(found["shape"]) for name, found in theirs.items()} == {
            name: entry.shape for name, entry in ours.items()
        }


@settings(max_examples=150)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4))
def test_an_adapter_with_flipped_bits_is_checked_to_the_end(
    flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_adapter(tmp_path_factory.mktemp("adapter"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        raw = bytearray((folder / name).read_bytes())
        for place, bits in flips:
            raw[place % len(raw)] ^= bits
        (folder / name).write_bytes(raw)

    with suppress(AdapterProblem):
        assert check_folder(folder, "small-base", None).content.rank == 4


LARGEST = {
    "nested": b"[" * (MAX_HEADER_BYTES - 1),
    "numbers": b'{"a":[' + b"0," * ((MAX_HEADER_BYTES - 16) // 2) + b"0]}",
    "objects": b'{"a":[' + b"{}," * ((MAX_HEADER_BYTES - 16) // 3) + b"{}]}",
    "digits": b'{"a":' + b"9" * (MAX_HEADER_BYTES - 16) + b"}",
}
LONGEST_S = 30.0
MOST_BYTES = 2**30
"""Of address space, on top of what is there: a list of 5.6 million empty dictionaries is the worst."""


def refused_within_bounds(raw: bytes) -> tuple[bool, float]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    start_s = time.monotonic()
    return read(struct.pack("<Q", len(raw)) + raw) is None, time.monotonic() - start_s


@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_header_costs_bounded_memory_and_time(kind: str) -> None:
    """In a process of its own, whose memory is limited."""
    ((refused, seconds),) = at_once(refused_within_bounds, [(LARGEST[kind],)])

    assert refused
    assert seconds < LONGEST_S
