"""All checks of an adapter's files, in one folder that nobody else writes to."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from cluster.adapters.base_shapes import BaseShapes
from cluster.adapters.content import CONFIG_FILE, FILES, LIMITS_BYTES, WEIGHTS_FILE, folder_hash
from cluster.adapters.errors import AdapterCorrupt, AdapterRefused
from cluster.adapters.finite import check_finite
from cluster.adapters.lora_config import read_lora_config
from cluster.adapters.lora_modules import LoraModule, lora_modules
from cluster.adapters.safetensors_header import read_header
from cluster.adapters.version import AdapterContent

PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.pkl")


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """`warnings`: sentences for the operator about what is odd, or could not be checked."""

    content: AdapterContent
    modules: tuple[LoraModule, ...]
    warnings: tuple[str, ...]


def check_folder(
    folder: Path, base_model: str, base: BaseShapes | None, base_source: str = ""
) -> CheckedAdapter:
    """Reads everything. `base` None: its weights are not at hand, which is a warning. `base_source` is where
    they come from, for comparison with the hint in the adapter's configuration.

    Raises AdapterCorrupt, AdapterRefused, BaseMismatch; OSError."""
    sizes_bytes = {name: _checked_size(folder / name) for name in FILES}
    config = read_lora_config(folder)
    tensors = read_header(folder / WEIGHTS_FILE)
    modules = lora_modules(tensors.values(), config)
    warnings = []
    if base is None:
        warnings.append(
            f"the weights of base model {base_model!r} are not on this machine: the shapes are checked when "
            "a replica loads the adapter"
        )
    else:
        base.check(modules, base_model)
    if config.base_hint and base_source and not _is_of(config.base_hint, f"{base_model} {base_source}"):
        warnings.append(
            f"{CONFIG_FILE} says that it was trained on {config.base_hint!r}; {base_model!r} is {base_source}"
        )
    check_finite(folder / WEIGHTS_FILE, tensors.values())
    content = AdapterContent(
        rank=config.largest_rank,  # what vLLM compares with max_lora_rank, used or not
        target_modules=tuple(sorted({module.kind for module in modules})),
        size_bytes=sum(sizes_bytes.values()),
        content_hash=folder_hash(folder),
    )
    return CheckedAdapter(content, modules, tuple(warnings))


def check_unchanged(folder: Path, content_hash: str) -> None:
    """Raises AdapterCorrupt where the bytes are not those that were registered."""
    try:
        found = folder_hash(folder)
    except FileNotFoundError as error:
        raise AdapterCorrupt("a file of the adapter is missing. Fetch it again.") from error
    if found != content_hash:
        raise AdapterCorrupt(
            f"the files are not those that were registered: their hash is {found[:12]}…, registered is "
            f"{content_hash[:12]}…. Put the old files back at the source, or add the new ones as a version."
        )


def missing_files(names: set[str]) -> str:
    """Why a place that holds only `names` is no adapter; empty: it is one."""
    if WEIGHTS_FILE not in names and (pickles := sorted(names.intersection(PICKLES))):
        return (
            f"the weights are there only as a pickle ({', '.join(pickles)}), and reading one can run any "
            "program. Convert them to safetensors: load the adapter with PEFT where you trust it, and save "
            "it with save_pretrained."
        )
    missing = [name for name in FILES if name not in names]
    if missing:
        return f"there is no {' and no '.join(missing)}. Give the folder that PEFT's save_pretrained wrote."
    return ""


def _checked_size(path: Path) -> int:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise AdapterRefused(f"{path.name} is no regular file. Put a copy of the file there.")
    check_size(path.name, found.st_size)
    return found.st_size


def check_size(name: str, size_bytes: int) -> None:
    """Before a byte of it is fetched. Raises AdapterRefused."""
    if size_bytes > LIMITS_BYTES[name]:
        raise AdapterRefused(f"{name} has {size_bytes} bytes, at most {LIMITS_BYTES[name]} are taken.")
    if size_bytes == 0:
        raise AdapterCorrupt(f"{name} is empty. Copy it again.")


def _is_of(hint: str, name_and_source: str) -> bool:
    """By the last part of the hint, without case: `Qwen/Qwen2.5-0.5B` and `/models/qwen2.5-0.5b/`."""
    return hint.rstrip("/").rpartition("/")[2].lower() in name_and_source.lower()
