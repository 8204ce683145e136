"""Tiny configs of the families that are described and not compiled, in the words of their published configs.

Values are such that no two sizes that mean different things are equal, so that one taken for another shows.
"""

from __future__ import annotations

from typing import Any

_SIZES = {"vocab_size": 50, "hidden_size": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 4,
    "v_head_dim": 14,
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 4,
    "routed_scaling_factor": 2.5,
    "pad_token_id": None,
}
_INDEXER = {"index_n_heads": 3, "index_head_dim": 8, "index_topk": 7}
_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 9,
    "linear_conv_kernel_dim": 4,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
TINY: dict[str, dict[str, Any]] = {
    "minimax_m2": {
        **_SIZES,
        **_HEADS,
        "num_hidden_layers": 2,
        "intermediate_size": 16,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "rotary_dim": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen3_5_text": {**_SIZES, **_HEADS, **_DELTA_NET, "intermediate_size": 40},
    "qwen3_5_moe_text": {
        **_SIZES,
        **_HEADS,
        **_DELTA_NET,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_next": {
        **_SIZES,
        **_HEADS,
        **_DELTA_NET,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "intermediate_size": 40,
    },
    "deepseek_v32": {**_SIZES, **_LATENT, **_INDEXER, "n_group": 1, "topk_group": 1},
    "glm_moe_dsa": {**_SIZES, **_LATENT, **_INDEXER, "indexer_types": ["full", "shared", "full", "shared"]},
    "mimo_v2_flash": {
        **_SIZES,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "v_head_dim": 5,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "sliding_window": 9,
        "intermediate_size": 40,
        "moe_intermediate_size": 16,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
    },
    "llama4_text": {
        **_SIZES,
        **_HEADS,
        "num_hidden_layers": 4,
        "intermediate_size": 16,
        "intermediate_size_mlp": 40,
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 9,
    },
    "gemma4_text": {
        **_SIZES,
        **_HEADS,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 9,
        "global_head_dim": 10,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "intermediate_size": 40,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "hidden_size_per_layer_input": 0,
        "tie_word_embeddings": True,
    },
    "minimax_m3": {
        **_SIZES,
        **_HEADS,
        "num_hidden_layers": 3,
        "intermediate_size": 16,
        "shared_intermediate_size": 24,
        "dense_intermediate_size": 40,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1],
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 8,
            "sparse_topk_blocks": 2,
            "sparse_block_size": 4,
            "sparse_attention_freq": [0, 1, 1],
        },
    },
    "nemotron-nas": {
        **_SIZES,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2, "no_op": False}, "ffn": {"ffn_mult": 2.0, "no_op": False}},
            {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 20.0, "no_op": False}},
            {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"ffn_mult": None, "no_op": True}},
        ],
    },
}


def tiny(model_type: str, **changes: Any) -> dict[str, Any]:
    """The tiny config of a family with `changes`."""
    return {"model_type": model_type, **TINY[model_type], **changes}
