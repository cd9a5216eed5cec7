"""What our checks let through vLLM loads, and what vLLM's own checks refuse ours refuse before: the installed
vLLM is asked, so that an upgrade that changes its mind is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.adapters.errors import AdapterProblem
from cluster.adapters.folder import check_folder
from cluster.adapters.lora_config import parse_lora_config
from tests.lora_files import SHAPES, lora_tensors, write_adapter

peft_helper = pytest.importorskip("vllm.lora.peft_helper", reason="vLLM is not installed")

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}

# All fields that PEFT writes, as its defaults are.
AS_PEFT_WRITES = PLAIN | {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "org/small-base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def ours_takes(fields: dict[str, Any]) -> bool:
    try:
        parse_lora_config(fields)
    except AdapterProblem:
        return False
    return True


def vllm_takes(fields: dict[str, Any]) -> bool:
    from vllm.config.lora import LoRAConfig

    try:
        peft_helper.PEFTHelper.from_dict(fields).validate_legal(LoRAConfig(max_lora_rank=512))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 16}},
        {"alpha_pattern": {"q_proj": 16}},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 1]]},
        {"use_bdlora": {"a": 1}},
        {"use_qalora": True},
        {"r": 0},
        {"rank_pattern": {"q_proj": 0}},
        *({"init_lora_weights": each} for each in (True, False, "gaussian", "eva", "orthogonal", "Gaussian")),
        *({"init_lora_weights": each} for each in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")),
        *({"init_lora_weights": each} for each in ("mica", "lora_ga", "something_new")),
    ],
    ids=str,
)
def test_both_take_the_same_configurations(changes: dict[str, Any]) -> None:
    fields = AS_PEFT_WRITES | changes

    assert ours_takes(fields) == vllm_takes(fields)


@pytest.mark.parametrize("without", ["r", "lora_alpha", "target_modules"])
def test_both_want_the_same_fields(without: str) -> None:
    fields = {name: value for name, value in AS_PEFT_WRITES.items() if name != without}

    assert not ours_takes(fields)
    assert not vllm_takes(fields)


def loaded(folder: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Module → shapes of A and B, as vLLM reads them."""
    from vllm.lora.lora_model import LoRAModel

    helper = peft_helper.PEFTHelper.from_local_dir(str(folder), None)
    expected = {module.rpartition(".")[2] for module in SHAPES}
    model = LoRAModel.from_local_checkpoint(str(folder), expected, helper, lora_model_id=1, device="cpu")
    return {
        name: (tuple(weights.lora_a.shape), tuple(weights.lora_b.shape))
        for name, weights in model.loras.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"], ids=["F32", "F16", "BF16"])
def test_vllm_reads_what_passed(tmp_path: Path, dtype: str) -> None:
    tensors = lora_tensors(4, modules=("self_attn.v_proj", "mlp.down_proj"))
    tensors |= lora_tensors(16, modules=("self_attn.q_proj",))
    tensors = {name: np.zeros_like(values, dtype) for name, values in tensors.items()}
    folder = write_adapter(tmp_path / "a", tensors, rank=4, rank_pattern={"self_attn.q_proj": 16})

    ours = check_folder(folder, "small-base", None).modules

    assert loaded(folder) == {
        module.name: ((module.rank, module.in_features), (module.out_features, module.rank))
        for module in ours
    }
