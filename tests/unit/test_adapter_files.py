"""What an adapter's files must be, and the sentence for each of those that are not."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.adapters.base_shapes import BaseShapes
from cluster.adapters.content import FILES, content_hash, folder_hash
from cluster.adapters.errors import AdapterCorrupt, AdapterProblem, AdapterRefused, BaseMismatch
from cluster.adapters.folder import CheckedAdapter, check_folder, check_unchanged, missing_files
from cluster.adapters.lora_config import parse_lora_config
from cluster.adapters.safetensors_header import MAX_HEADER_BYTES, read_header
from tests.lora_files import SHAPES, lora_tensors, write_adapter, write_base, write_safetensors

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
WEIGHTS = "adapter_model.safetensors"
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> BaseShapes:
    found = BaseShapes.of_folder(write_base(tmp_path / "base"))
    assert found is not None
    return found


def checked(folder: Path, base: BaseShapes | None = None) -> CheckedAdapter:
    return check_folder(folder, "small-base", base)


def test_a_good_adapter_says_what_it_is(tmp_path: Path, base: BaseShapes) -> None:
    folder = write_adapter(tmp_path / "a", rank=4)

    found = check_folder(folder, "small-base", base, "hf:org/small-base@main")

    assert found.content.rank == 4
    assert found.content.target_modules == ("down_proj", "q_proj", "v_proj")
    assert found.content.size_bytes == sum((folder / name).stat().st_size for name in FILES)
    assert found.content.content_hash == folder_hash(folder)
    assert found.warnings == ()
    assert len(found.modules) == 2 * len(SHAPES)


def test_the_hash_is_over_names_and_hashes_of_the_files_that_count(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    lines = [
        f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in sorted(FILES)
    ]
    before = folder_hash(folder)

    (folder / "README.md").write_text("does not count")

    assert before == hashlib.sha256("".join(lines).encode()).hexdigest() == folder_hash(folder)
    assert content_hash({"b": "2", "a": "1"}) == content_hash({"a": "1", "b": "2"})
    write_adapter(tmp_path / "b", lora_alpha=9)
    assert folder_hash(tmp_path / "b") != before


def test_a_changed_byte_and_a_lost_file_are_noticed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    registered = folder_hash(folder)
    check_unchanged(folder, registered)

    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(AdapterCorrupt, match="not those that were registered: their hash is"):
        check_unchanged(folder, registered)

    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterCorrupt, match="a file of the adapter is missing"):
        check_unchanged(folder, registered)


# adapter_config.json.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is \"'LOHA'\". Only LORA can be served"),
        ({"peft_type": None}, "Only LORA can be served"),
        ({"use_dora": True}, "it is a DoRA adapter, which is not served"),
        ({"bias": "all"}, "it trained biases"),
        ({"lora_bias": True}, "it trained biases"),
        ({"modules_to_save": ["lm_head"]}, "it carries whole modules"),
        ({"layer_replication": [[0, 2]]}, "it replicates layers"),
        ({"alora_invocation_tokens": [1]}, "it is an activated LoRA"),
        ({"use_qalora": True}, "it is a QALoRA adapter"),
        ({"use_bdlora": {"a": 1}}, "it is a block-diagonal LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' has changed the base model's weights"),
        ({"trainable_token_indices": [3]}, "it trained single tokens"),
        ({"target_modules": []}, "target_modules names no module"),
        ({"lora_alpha": "16"}, "lora_alpha is no number"),
        ({"r": 0}, "r is '0'. A rank is between 1 and 512"),
        ({"r": True}, "r is 'True'"),
        ({"r": 513}, "r is '513'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern\\['q_proj'\\] is '0'"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern has the expression"),
        ({"rank_pattern": [4]}, "rank_pattern is no object"),
    ],
)
def test_a_configuration_that_is_not_served(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterRefused, match=words):
        parse_lora_config(PLAIN | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"modules_to_save": None},
        {"target_modules": "all-linear"},
        {"a_field_of_tomorrow": 1},
    ],
)
def test_a_configuration_that_is_served(changes: dict[str, Any]) -> None:
    assert parse_lora_config(PLAIN | changes).largest_rank == 8


def test_the_largest_rank_of_all_modules_counts(tmp_path: Path) -> None:
    tensors = lora_tensors(4, modules=("self_attn.v_proj", "mlp.down_proj"))
    tensors |= lora_tensors(16, modules=("self_attn.q_proj",))
    folder = write_adapter(tmp_path / "a", tensors, rank=4, rank_pattern={"self_attn.q_proj": 16})

    assert checked(folder).content.rank == 16


def test_a_rank_that_no_module_has_counts_too_as_the_engine_counts_it(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path / "a",
        lora_tensors(4),
        rank=32,
        rank_pattern=dict.fromkeys(("q_proj", "v_proj", "down_proj"), 4),
    )

    assert checked(folder).content.rank == 32


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)

    with pytest.raises(AdapterCorrupt, match=r"adapter_config\.json is (empty|no JSON)"):
        checked(folder)


# Weights.


def test_a_rank_that_is_not_the_configurations(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", lora_tensors(rank=8), rank=4)

    with pytest.raises(AdapterRefused, match="which is not the rank 4 that its configuration says"):
        checked(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop(Q_A), "has not exactly one matrix A and one matrix B"),
        (lambda found: found.clear(), "holds no LoRA weights"),
        (
            lambda found: found.update({"base_model.model.lm_head.weight": np.ones((2, 2), "float32")}),
            "neither lora_A nor lora_B of a module",
        ),
        (
            lambda found: found.update({f"../../{Q_A}": np.ones((2, 2), "float32")}),
            "neither lora_A nor lora_B of a module",
        ),
        (
            lambda found: found.update({Q_A: np.ones((4, 8), "int8")}),
            "is I8. Save the adapter in one of BF16, F16, F32",
        ),
        (
            lambda found: found.update({Q_A: np.ones((4, 8, 1), "float32")}),
            "has not exactly one matrix A and one matrix B",
        ),
    ],
    ids=["half", "nothing", "whole_module", "odd_name", "integers", "three_dimensions"],
)
def test_tensors_that_are_no_pairs(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    tensors = lora_tensors()
    change(tensors)

    with pytest.raises(AdapterRefused, match=words):
        checked(write_adapter(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("float32", np.float32("nan")),
        ("float32", np.float32("-inf")),
        ("float16", np.float16("inf")),
        ("uint16", np.uint16(0x7FC0)),  # bfloat16's NaN
        ("uint16", np.uint16(0xFF80)),  # bfloat16's -inf
    ],
)
def test_weights_that_are_no_numbers(tmp_path: Path, dtype: str, bits: Any) -> None:
    tensors = lora_tensors(dtype=dtype)
    tensors[Q_A] = np.ones_like(tensors[Q_A])
    tensors[Q_A][-1, -1] = bits

    with pytest.raises(AdapterRefused, match=r"q_proj\.lora_A\.weight' has weights that are NaN or infinite"):
        checked(write_adapter(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [("float32", np.finfo("float32").max), ("float16", np.finfo("float16").max), ("uint16", 0xFF7F)],
)
def test_the_largest_numbers_are_numbers(tmp_path: Path, dtype: str, largest: float) -> None:
    tensors = lora_tensors(dtype=dtype)
    tensors = {name: np.full_like(values, largest) for name, values in tensors.items()}

    assert checked(write_adapter(tmp_path / "a", tensors)).content.rank == 4


# The base model.


def test_an_adapter_for_another_base_of_other_width(tmp_path: Path) -> None:
    other = BaseShapes.of_folder(write_base(tmp_path / "wide", hidden=16))

    with pytest.raises(
        BaseMismatch, match=r"as a matrix of \[8, 8\], base model 'small-base' has \[16, 16\]"
    ):
        checked(write_adapter(tmp_path / "a"), other)


def test_an_adapter_for_a_base_with_more_layers(tmp_path: Path, base: BaseShapes) -> None:
    tensors = lora_tensors()
    tensors |= {name.replace("layers.1.", "layers.7."): values for name, values in tensors.items()}

    with pytest.raises(BaseMismatch, match=r"layers\.7\..*which base model 'small-base' does not have"):
        checked(write_adapter(tmp_path / "a", tensors), base)


def test_modules_are_found_whatever_stands_before_the_layers(tmp_path: Path, base: BaseShapes) -> None:
    tensors = {
        name.replace("model.model.layers", "model.model.language_model.layers"): values
        for name, values in lora_tensors().items()
    }

    assert checked(write_adapter(tmp_path / "a", tensors), base).warnings == ()


def test_an_embedding_fits_by_its_vocabulary(tmp_path: Path, base: BaseShapes) -> None:
    def with_vocabulary(size: int) -> dict[str, np.ndarray]:
        place = "base_model.model.model.embed_tokens.lora_embedding"
        embedding = {f"{place}_A": np.ones((4, size), "float32"), f"{place}_B": np.ones((8, 4), "float32")}
        return lora_tensors() | embedding

    checked(write_adapter(tmp_path / "fits", with_vocabulary(32)), base)
    with pytest.raises(BaseMismatch, match="embed_tokens"):
        checked(write_adapter(tmp_path / "not", with_vocabulary(33)), base)


def test_a_tied_output_layer_is_no_mismatch(tmp_path: Path, base: BaseShapes) -> None:
    head = {
        "base_model.model.lm_head.lora_A.weight": np.ones((4, 8), "float32"),
        "base_model.model.lm_head.lora_B.weight": np.ones((32, 4), "float32"),
    }

    assert (
        "lm_head"
        in checked(write_adapter(tmp_path / "a", lora_tensors() | head), base).content.target_modules
    )


def test_packed_weights_of_a_base_tell_its_modules_and_not_their_shapes(tmp_path: Path) -> None:
    """As GPTQ and AWQ (`qweight`) and bitsandbytes (bytes) write them; the embedding stays as it is."""
    packed = {"model.embed_tokens.weight": np.zeros((32, 8), "float32")}
    for layer, module in product(range(2), SHAPES):
        form = "weight" if module == "mlp.down_proj" else "qweight"
        packed[f"model.layers.{layer}.{module}.{form}"] = np.zeros((4, 2), "int8")
    (tmp_path / "base").mkdir()
    write_safetensors(tmp_path / "base/model.safetensors", packed)
    base = BaseShapes.of_folder(tmp_path / "base")

    checked(write_adapter(tmp_path / "a"), base)

    more = {name.replace("layers.1.", "layers.7."): values for name, values in lora_tensors().items()}
    with pytest.raises(BaseMismatch, match=r"layers\.7\."):
        checked(write_adapter(tmp_path / "b", more), base)


def test_a_folder_without_safetensors_says_nothing(tmp_path: Path) -> None:
    assert BaseShapes.of_folder(tmp_path) is None


def test_what_is_odd_or_unchecked_is_said(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path="org/another")

    found = check_folder(folder, "small-base", None, "hf:org/small-base@main")

    assert "are not on this machine: the shapes are checked when a replica loads the" in found.warnings[0]
    assert found.warnings[1].endswith("trained on 'org/another'; 'small-base' is hf:org/small-base@main")


@pytest.mark.parametrize("hint", ["org/Small-Base", "/models/small-base/", "small-base", "org/tiny", ""])
def test_a_hint_that_names_the_base_or_its_source_is_not_odd(
    tmp_path: Path, base: BaseShapes, hint: str
) -> None:
    folder = write_adapter(tmp_path / "a", base_model_name_or_path=hint)

    assert check_folder(folder, "small-base", base, "pypi:tiny==1.0").warnings == ()


# Bytes.


def replaced(folder: Path, raw: bytes) -> Path:
    (folder / WEIGHTS).write_bytes(raw)
    return folder


def header(fields: Any, data: bytes = b"") -> bytes:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(begin: int = 0, end: int = 4, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"1234567", "has 7 bytes, which is no safetensors file"),
        (struct.pack("<Q", 2**63), f"announces a header of {2**63} bytes, above {MAX_HEADER_BYTES}"),
        (struct.pack("<Q", 100) + b"{}", "is truncated: its header ends at byte 108, the file at 10"),
        (header(b"{"), "has a header that cannot be read"),
        (header(b"[" * 200_000), "has a header that cannot be read"),
        (header(b'{"a": {"b": NaN}}'), "NaN is not JSON"),
        (header(b'{"a": 1, "a": 2}'), "a name comes twice"),
        (header(b"\xff\xfe"), "has a header that cannot be read"),
        (header([1]), "is no JSON object"),
        (header({"a": 1}), "no dtype, shape or data_offsets"),
        (header({"a": tensor(dtype="F31")}), "the unknown type 'F31'"),
        (header({"a": tensor(dtype=[])}), "the unknown type"),
        (header({"a": tensor(shape=(-1,))}), "a shape that is none"),
        (header({"a": tensor(shape=(True,))}), "a shape that is none"),
        (header({"a": tensor(shape=(2**70,))}), "a shape that is none"),
        (header({"a": tensor(shape=(1,) * 9)}), "a shape that is none"),
        (header({"a": tensor(4, 0)}), "offsets that are none"),
        (header({"a": tensor(shape=(2,))}), "4 bytes, which is not what F32 of its shape takes"),
        (header({"a": tensor(4, 8)}, b"12345678"), "does not begin where the one before ends"),
        (header({"a": tensor(), "b": tensor()}, b"1234"), "does not begin where the one before ends"),
        (header({"a": tensor()}, b"123"), "is truncated: its last tensor ends at byte"),
        (header({"a": tensor()}, b"12345"), "has 1 bytes behind its last tensor"),
        (header({"a" * 600: tensor()}, b"1234"), "a name of 600 characters"),
    ],
)
def test_bytes_that_are_no_safetensors(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(AdapterCorrupt, match=words):
        checked(replaced(write_adapter(tmp_path / "a"), raw))


def test_a_file_cut_anywhere_is_corrupt(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    whole = (folder / WEIGHTS).read_bytes()

    for size in range(0, len(whole), 37):
        with pytest.raises(AdapterCorrupt):
            checked(replaced(folder, whole[:size]))


def test_the_header_is_that_of_the_library(tmp_path: Path) -> None:
    """Peer check: the reference implementation sees the same tensors."""
    safetensors = pytest.importorskip("safetensors", reason="comes with transformers")
    folder = write_adapter(tmp_path / "a")

    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    assert theirs == {name: entry.shape for name, entry in read_header(folder / WEIGHTS).items()}


def test_a_text_from_outside_is_bounded_and_escaped_in_a_message(tmp_path: Path) -> None:
    nasty = "\x1b[31m" + "a" * 400
    raw = header({nasty: tensor()}, b"1234")

    with pytest.raises(AdapterProblem) as caught:
        checked(replaced(write_adapter(tmp_path / "a"), raw))

    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400


# Files.


def test_links_and_folders_in_place_of_files(tmp_path: Path) -> None:
    elsewhere = write_adapter(tmp_path / "elsewhere")
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(elsewhere / WEIGHTS)
    with pytest.raises(AdapterRefused, match="is no regular file"):
        checked(folder)

    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(AdapterRefused, match="is no regular file"):
        checked(folder)


def test_files_above_the_limit_are_refused_unread(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(2**35)  # a hole: no disk is used

    with pytest.raises(AdapterRefused, match="has 34359738368 bytes, at most 17179869184 are taken"):
        checked(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            {"adapter_config.json", "adapter_model.bin"},
            r"only as a pickle \(adapter_model\.bin\).*Convert them",
        ),
        ({"adapter_config.json", "adapter_model.pt"}, "only as a pickle"),
        ({"adapter_config.json"}, r"there is no adapter_model\.safetensors\. Give the folder"),
        (set(), r"there is no adapter_config\.json and no adapter_model\.safetensors"),
    ],
)
def test_places_that_hold_no_adapter(names: set[str], words: str) -> None:
    assert re.search(words, missing_files(names))


def test_a_pickle_beside_the_weights_is_passed_over() -> None:
    assert missing_files({*FILES, "adapter_model.bin", "training_args.bin"}) == ""
