"""A tiny model of every kind of cache that mlx-lm has, as `tiny_models.tiny_model` makes them.

Windows and chunks are 8 to 12 tokens long, so that a short prompt leaves them behind.
"""

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from tests.tiny_models import tiny_model

_COMMON: Mapping[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}
_LATENT: Mapping[str, object] = {
    **_COMMON,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LLAMA4: Mapping[str, object] = {
    **_COMMON,
    "head_dim": 16,
    "intermediate_size_mlp": 96,
    "use_qk_norm": True,
    "num_hidden_layers": 4,
}


@frozen
class Shape:
    """An architecture: its config, the kinds of its caches, how its sequences decode."""

    kinds: str
    batching: str
    config: Mapping[str, object]

    def made(self, folder: Path, seed: int = 3) -> Path:
        """Such a model in `folder`."""
        return tiny_model(folder, seed, self.config)


SHAPES: dict[str, Shape] = {
    "llama": Shape("3 full", "ragged", {**_COMMON, "model_type": "llama"}),
    "qwen3": Shape("3 full", "ragged", {**_COMMON, "model_type": "qwen3", "head_dim": 16}),
    "gemma3_text": Shape(
        "2 window(8), 1 full",
        "ragged",
        {
            **_COMMON,
            "model_type": "gemma3_text",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
        },
    ),
    "gpt_oss": Shape(
        "2 window(8), 1 full",
        "ragged",
        {
            **_COMMON,
            "model_type": "gpt_oss",
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 256,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
    ),
    "deepseek_v2": Shape(
        "3 full",
        "ragged",
        {
            **_LATENT,
            "model_type": "deepseek_v2",
            "rope_scaling": {
                "type": "yarn",
                "factor": 2.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 256,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
    ),
    "deepseek_v3": Shape("3 full", "ragged", {**_LATENT, "model_type": "deepseek_v3"}),
    "qwen3_next": Shape(
        "2 state, 1 full",
        "ragged",
        {
            **_COMMON,
            "model_type": "qwen3_next",
            "head_dim": 16,
            "full_attention_interval": 3,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [],
            "moe_intermediate_size": 32,
            "partial_rotary_factor": 0.5,
            "norm_topk_prob": True,
        },
    ),
    "mamba2": Shape(
        "3 state",
        "ragged",
        {
            **_COMMON,
            "model_type": "mamba2",
            "num_heads": 8,
            "head_dim": 16,
            "intermediate_size": 128,
            "state_size": 16,
            "layer_norm_epsilon": 1e-5,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_limit": [0.0, 100.0],
            "time_step_rank": 4,
        },
    ),
    "falcon_h1": Shape(
        "3 state, 3 full",
        "ragged",
        {
            **_COMMON,
            "model_type": "falcon_h1",
            "head_dim": 16,
            "mamba_d_conv": 4,
            "mamba_d_head": 16,
            "mamba_d_ssm": 64,
            "mamba_d_state": 16,
            "mamba_n_heads": 4,
            "mamba_n_groups": 1,
        },
    ),
    "llama4": Shape(
        "3 window(12), 1 full",
        "single",
        {
            "model_type": "llama4",
            "text_config": {
                **_LLAMA4,
                "model_type": "llama4_text",
                "attention_bias": False,
                "attention_chunk_size": 12,
                "interleave_moe_layer_step": 2,
                "num_experts_per_tok": 1,
                "num_local_experts": 4,
                "rope_scaling": None,
                "vocab_size": 259,
            },
        },
    ),
    "llama4_text": Shape(
        "4 full",
        "ragged",
        {**_LLAMA4, "model_type": "llama4_text", "no_rope_layers": [1, 1, 1, 0]},
    ),
}

# Architectures with caches of their own making.
UNKNOWN: dict[str, Shape] = {
    "deepseek_v41": Shape(
        "3 whole",
        "single",
        {
            "model_type": "deepseek_v41",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "head_dim": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "o_groups": 2,
            "o_lora_rank": 16,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "compress_ratios": [1, 4, 4],
            "kv_source_layer_ids": [0, 1, 1],
            "index_source_layer_ids": [0, 1, 1],
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 4,
            "max_position_embeddings": 4096,
            "hc_mult": 2,
        },
    ),
}
