"""DeepSeek-V3, R1 and Kimi-K2: latent attention; experts with a shared one after the first dense layers.

Multi-token-prediction layers (`num_nextn_predict_layers`) follow the others in the checkpoint. They are counted in
`Architecture.mtp_layers` and are no part of the served model here.
"""

from __future__ import annotations

from specs.architecture.dialect import read_rope
from specs.architecture.families.common import (
    DENSE_MLP,
    EXPERTS,
    SELF_ATTENTION,
    assemble,
    read_activation,
    read_experts_per_token,
    read_hidden_size,
    read_layers,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import LatentAttention
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader

LATENT_ATTENTION = {
    "q_a_proj": "self_attn.q_a_proj",
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b_proj": "self_attn.q_b_proj",
    "kv_a_proj_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b_proj": "self_attn.kv_b_proj",
}
SHARED_EXPERT = {
    "correction_bias": "mlp.gate.e_score_correction_bias",
    "shared_gate_proj": "mlp.shared_experts.gate_proj",
    "shared_up_proj": "mlp.shared_experts.up_proj",
    "shared_down_proj": "mlp.shared_experts.down_proj",
}
# Said again by other keys, or of training only.
HARMLESS = frozenset({"ep_size", "seq_aux", "aux_loss_alpha", "head_dim", "rope_interleave"})


def read(reader: ConfigReader) -> Architecture:
    """Scores are sigmoids, chosen within `topk_group` of `n_group` groups after adding the correction bias."""
    hidden_size = read_hidden_size(reader)
    activation = read_activation(reader, "hidden_act", "silu")
    attention = _read_attention(reader, hidden_size)
    sparse = _read_experts(reader, hidden_size, activation)
    dense = DenseMLP(hidden_size, reader.integer("intermediate_size"), activation=activation)
    first_sparse = reader.integer("first_k_dense_replace", 0, low=0)
    step = reader.integer("moe_layer_freq", 1, high=MAX_LAYERS)
    layers = tuple(
        Layer(hidden_size, attention, sparse if index >= first_sparse and index % step == 0 else dense)
        for index in range(read_layers(reader))
    )
    return assemble(
        reader,
        "deepseek_v3",
        layers,
        weight_names(SELF_ATTENTION, LATENT_ATTENTION, DENSE_MLP, EXPERTS, SHARED_EXPERT),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader),
        mtp_layers=reader.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS),
        harmless=HARMLESS,
    )


def _read_attention(reader: ConfigReader, hidden_size: int) -> LatentAttention:
    heads = reader.integer("num_attention_heads", high=1 << 16)
    reader.expect("num_key_value_heads", heads)
    rope_dim = reader.integer("qk_rope_head_dim", high=1 << 14)
    nope_dim = reader.integer("qk_nope_head_dim", high=1 << 14)
    reader.expect("qk_head_dim", rope_dim + nope_dim)
    return LatentAttention(
        hidden_size,
        heads,
        query_rank=reader.optional_integer("q_lora_rank"),
        kv_rank=reader.integer("kv_lora_rank"),
        rope_dim=rope_dim,
        nope_dim=nope_dim,
        value_dim=reader.integer("v_head_dim", high=1 << 14),
        bias=reader.boolean("attention_bias", False),
    )


def _read_experts(reader: ConfigReader, hidden_size: int, activation: str) -> MixtureOfExperts:
    reader.expect("scoring_func", "sigmoid")
    reader.expect("topk_method", "noaux_tc")
    experts = reader.integer("n_routed_experts", low=2, high=MAX_EXPERTS)
    width = reader.integer("moe_intermediate_size")
    groups = reader.integer("n_group", 1, high=MAX_EXPERTS)
    groups_per_token = reader.integer("topk_group", 1, high=MAX_EXPERTS)
    if experts % groups or groups_per_token > groups:
        what = f"is {groups}, with {experts} experts and topk_group {groups_per_token}"
        raise reader.error("n_group", what, "a divisor of the experts, not below topk_group")
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        width,
        activation=activation,
        shared_intermediate_size=width * reader.integer("n_shared_experts", 0, low=0, high=MAX_EXPERTS),
        correction_bias=True,
        scoring="sigmoid",
        normalise=reader.boolean("norm_topk_prob", True),
        scaling=reader.number("routed_scaling_factor", 1.0),
        expert_groups=groups,
        expert_groups_per_token=groups_per_token,
    )
