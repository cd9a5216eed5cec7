"""Each architecture at its smallest: every kind of layer once or twice, every width as small as it goes.

The settings are those of the architecture's own config class in transformers; the vocabulary is added when
the tokenizer is known. Layer counts follow from what an architecture mixes: a hybrid has each kind of layer.
"""

from __future__ import annotations

from typing import Any

DENSE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # vLLM's CPU attention takes multiples of 32
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

GATED_DELTA = {  # linear attention of Qwen 3.5
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": DENSE,
    "SmolLM3ForCausalLM": {**DENSE, "no_rope_layers": [1, 0]},
    "Qwen2ForCausalLM": {k: v for k, v in DENSE.items() if k != "head_dim"} | {"hidden_size": 128},
    "Qwen3ForCausalLM": DENSE,
    "Qwen3MoeForCausalLM": {**DENSE, **MIXTURE, "num_experts": 4},
    "Qwen3_5ForCausalLM": {**DENSE, **GATED_DELTA, "layer_types": ["linear_attention", "full_attention"]},
    "Phi3ForCausalLM": {k: v for k, v in DENSE.items() if k != "head_dim"} | {"hidden_size": 128},
    "Gemma3ForCausalLM": {
        **DENSE,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64,
        "query_pre_attn_scalar": 32,
    },
    "Gemma3nForCausalLM": {
        **DENSE,
        "num_hidden_layers": 4,
        "intermediate_size": [128] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 64,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 65536,  # not below the vocabulary
        "laurel_rank": 8,
    },
    "Gemma4ForCausalLM": {
        **DENSE,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 65536,  # not below the vocabulary
    },
    "NemotronHForCausalLM": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 32,
    },
    "Lfm2ForCausalLM": {
        **{k: v for k, v in DENSE.items() if k != "head_dim"},
        "hidden_size": 128,
        "conv_dim": 128,  # this and the next stand in every published config.json; vLLM asks for them
        "block_dim": 128,
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    "Lfm2MoeForCausalLM": {
        **{k: v for k, v in DENSE.items() if k != "head_dim"},
        **MIXTURE,
        "hidden_size": 128,
        "num_experts": 4,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "GptOssForCausalLM": {
        **DENSE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64,
        "tie_word_embeddings": False,
    },
    "DeepseekV3ForCausalLM": {
        **{k: v for k, v in DENSE.items() if k not in ("head_dim", "num_key_value_heads")},
        **MIXTURE,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "topk_method": "noaux_tc",  # in every published config.json; vLLM asks for it
        "kv_lora_rank": 512,  # this and the next as published: vLLM's kernels take the sum of 576 only
        "qk_rope_head_dim": 64,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "tie_word_embeddings": False,
    },
}
