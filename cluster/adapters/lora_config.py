"""`adapter_config.json`: what PEFT wrote about the adapter, and which of it can be served.

The features that are refused are those that vLLM 0.32 refuses (`vllm/lora/peft_helper.py`): it would do so
only in the replica, minutes later, and with a traceback.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.adapters.content import CONFIG_FILE
from cluster.adapters.errors import AdapterCorrupt, AdapterRefused
from cluster.adapters.version import shown

MAX_RANK = 512
"""vLLM's largest `max_lora_rank`, and that of the configuration."""

_MODULE = re.compile(r"[\w.-]+")

PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Values of `init_lora_weights` that leave the base model's weights alone."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    rank: int
    rank_pattern: dict[str, int]
    base_hint: str
    """`base_model_name_or_path`: a name on somebody's disk or on the hub. A hint and no more."""

    @property
    def largest_rank(self) -> int:
        return max(self.rank, *self.rank_pattern.values()) if self.rank_pattern else self.rank

    def rank_of(self, module: str) -> int:
        """PEFT's rule: the first pattern that matches a suffix of the module's name at a dot."""
        for pattern, rank in self.rank_pattern.items():
            if module == pattern or module.endswith(f".{pattern}"):
                return rank
        return self.rank


def read_lora_config(folder: Path) -> LoraConfig:
    """Raises AdapterCorrupt where it cannot be read, AdapterRefused where it asks for what we do not serve;
    OSError."""
    raw = (folder / CONFIG_FILE).read_bytes()
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AdapterCorrupt(f"{CONFIG_FILE} is no JSON. Save the adapter again.") from error
    if not isinstance(fields, dict):
        raise AdapterCorrupt(f"{CONFIG_FILE} is no JSON object. Save the adapter again.")
    return parse_lora_config(fields)


def parse_lora_config(fields: dict[str, Any]) -> LoraConfig:
    """Raises AdapterRefused with the first reason."""
    _check_features(fields)
    patterns = fields.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterRefused(f"{CONFIG_FILE}: rank_pattern is no object. Save the adapter again.")
    return LoraConfig(
        rank=_rank("r", fields.get("r")),
        rank_pattern={key: _pattern_rank(key, value) for key, value in patterns.items()},
        base_hint=str(fields.get("base_model_name_or_path") or ""),
    )


def _rank(where: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterRefused(
            f"{CONFIG_FILE}: {where} is {shown(repr(value))}. A rank is between 1 and {MAX_RANK}."
        )
    return value


def _pattern_rank(key: str, value: Any) -> int:
    # PEFT reads keys as regular expressions. Plain names are all that it writes itself; we run no foreign
    # expression.
    if _MODULE.fullmatch(key) is None:
        raise AdapterRefused(
            f"{CONFIG_FILE}: rank_pattern has the expression {shown(key)}. Write the names of modules, such "
            "as layers.0.self_attn.q_proj."
        )
    return _rank(f"rank_pattern[{shown(key)}]", value)


def _check_features(fields: dict[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise AdapterRefused(
            f"{CONFIG_FILE}: peft_type is {shown(repr(kind))}. Only LORA can be served; train it as LoRA."
        )
    init = fields.get("init_lora_weights", True)
    targets = fields.get("target_modules")
    refused = (
        (not targets or not isinstance(targets, (list, str)), "target_modules names no module"),
        (not _is_number(fields.get("lora_alpha")), "lora_alpha is no number"),
        (fields.get("use_dora"), "it is a DoRA adapter"),
        (fields.get("bias", "none") != "none" or fields.get("lora_bias"), "it trained biases"),
        (
            fields.get("modules_to_save"),
            f"it carries whole modules ({shown(str(fields.get('modules_to_save')))})",
        ),
        (fields.get("alora_invocation_tokens"), "it is an activated LoRA"),
        (fields.get("layer_replication"), "it replicates layers"),
        (fields.get("use_bdlora"), "it is a block-diagonal LoRA"),
        (fields.get("use_qalora"), "it is a QALoRA adapter"),
        (fields.get("trainable_token_indices"), "it trained single tokens"),
        (fields.get("target_parameters"), "it targets parameters that are no modules"),
        (
            isinstance(init, str) and init.lower() not in PLAIN_INITS,
            f"init_lora_weights {shown(str(init))} has changed the base model's weights",
        ),
    )
    for found, what in refused:
        if found:
            raise AdapterRefused(
                f"{CONFIG_FILE}: {what}, which is not served. Convert it to plain LoRA, or train it as such."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
