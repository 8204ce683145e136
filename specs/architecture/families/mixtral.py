"""Mixtral: Mistral's attention, and experts in every layer."""

from __future__ import annotations

from specs.architecture.dialect import read_rope, read_windows
from specs.architecture.families.common import (
    SELF_ATTENTION,
    assemble,
    read_activation,
    read_experts_per_token,
    read_heads,
    read_hidden_size,
    read_layers,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, ConfigReader

MIXTRAL_EXPERTS = {
    "router": "block_sparse_moe.gate",
    "expert_gate_proj": "block_sparse_moe.experts.{expert}.w1",
    "expert_up_proj": "block_sparse_moe.experts.{expert}.w3",
    "expert_down_proj": "block_sparse_moe.experts.{expert}.w2",
}


def read(reader: ConfigReader) -> Architecture:
    """Scores are a softmax over all experts, those of the chosen ones divided by their sum."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size)
    activation = read_activation(reader, "hidden_act", "silu")
    experts = reader.integer("num_local_experts", low=2, high=MAX_EXPERTS)
    mlp = MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        reader.integer("intermediate_size"),
        activation=activation,
    )
    layers = tuple(
        Layer(hidden_size, Attention(hidden_size, heads.heads, heads.kv_heads, heads.head_dim, window), mlp)
        for window in read_windows(reader, read_layers(reader), "all")
    )
    names = weight_names(SELF_ATTENTION, MIXTRAL_EXPERTS)
    rope = read_rope(reader, 1_000_000.0)
    return assemble(reader, "mixtral", layers, names, hidden_size=hidden_size, activation=activation, rope=rope)
