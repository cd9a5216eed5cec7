"""Records of the registry: a version of an adapter, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.adapters.errors import AdapterRefused
from cluster.adapters.life import AdapterLife
from cluster.config.base import MODEL_NAME

MAX_NUMBER = 999_999
"""What ADAPTER_ID of `cluster/config/base.py` has digits for."""

_NAME = re.compile(MODEL_NAME)
_VERSION = re.compile(r"(?P<name>.+)@(?P<number>[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Lineage:
    """call → dataset → recipe → adapter version. Empty where nobody said; `gate` is the gate's own result."""

    recipe: str = ""
    dataset_hash: str = ""
    gate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """What the checks found in the files (`cluster.adapters.folder.check_folder`)."""

    rank: int  # the largest of all modules
    target_modules: tuple[str, ...]  # last parts of their names, sorted: q_proj, v_proj
    size_bytes: int  # of the files that count
    content_hash: str  # `cluster.adapters.content.content_hash`


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version. All but `state` never changes once it is registered."""

    adapter_id: str  # name@n
    base_model: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    content_hash: str
    source: str  # folder:PATH, hf:REPO@COMMIT or s3://BUCKET/PREFIX
    state: AdapterLife
    created_at_ms: int
    lineage: Lineage = Lineage()

    @property
    def name(self) -> str:
        return split_id(self.adapter_id)[0]

    @property
    def number(self) -> int:
        return split_id(self.adapter_id)[1]


def split_id(adapter_id: str) -> tuple[str, int]:
    """`name@n` → name and number. Raises AdapterRefused for anything else."""
    match = _VERSION.fullmatch(adapter_id)
    if match is None or _NAME.fullmatch(match["name"]) is None:
        raise AdapterRefused(
            f"{shown(adapter_id)} is no adapter version. Write NAME@N, for example support@3."
        )
    return match["name"], int(match["number"])


def check_name(name: str) -> None:
    """Raises AdapterRefused. A name becomes part of ids and of what clients send, never of a path."""
    if _NAME.fullmatch(name) is None:
        raise AdapterRefused(
            f"{shown(name)} cannot name an adapter. Use 1 to 64 lower-case letters, digits, dots, dashes or "
            "underscores, the first a letter or digit; the version number is given by the registry."
        )


def check_base_model(name: str) -> None:
    """Raises AdapterRefused. Any that a configuration could have: it need not be in the one at hand."""
    if _NAME.fullmatch(name) is None:
        raise AdapterRefused(f"{shown(name)} cannot be a base model. Use its name in the YAML's base_models.")


def shown(text: str, longest: int = 80) -> str:
    """Foreign text inside a message: quoted, escaped and bounded."""
    return repr(text if len(text) <= longest else f"{text[:longest]}…")
