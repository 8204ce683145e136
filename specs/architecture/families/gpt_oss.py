"""gpt-oss: windowed and full attention in turn, with sinks and biases; experts with biases, stored as MXFP4."""

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

# MXFP4 checkpoints hold the two expert matrices as `NAME_blocks` and `NAME_scales`.
STACKED_EXPERTS = {
    "router": "mlp.router",
    "sinks": "self_attn.sinks",
    "experts_gate_up_proj": "mlp.experts.gate_up_proj",
    "experts_gate_up_proj_bias": "mlp.experts.gate_up_proj_bias",
    "experts_down_proj": "mlp.experts.down_proj",
    "experts_down_proj_bias": "mlp.experts.down_proj_bias",
}


def read(reader: ConfigReader) -> Architecture:
    """The softmax is over the chosen experts. Only the expert matrices are quantised; the rest stays in 16 bits."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size, default_head_dim=64)
    activation = read_activation(reader, "hidden_act", "silu")
    bias = reader.boolean("attention_bias", True)
    experts = reader.integer("num_local_experts", low=2, high=MAX_EXPERTS)
    chosen = read_experts_per_token(reader, experts)
    reader.expect("experts_per_token", chosen)
    reader.number("swiglu_limit", 7.0)
    mlp = MixtureOfExperts(
        hidden_size,
        experts,
        chosen,
        reader.integer("intermediate_size"),
        activation=activation,
        expert_bias=True,
        stacked="in_out",
        router_bias=True,
        scoring="softmax_of_chosen",
    )
    layers = tuple(
        Layer(
            hidden_size,
            Attention(
                hidden_size,
                heads.heads,
                heads.kv_heads,
                heads.head_dim,
                window,
                qkv_bias=bias,
                output_bias=bias,
                sinks=True,
                quantised=False,
            ),
            mlp,
        )
        for window in read_windows(reader, read_layers(reader), "alternate")
    )
    return assemble(
        reader,
        "gpt_oss",
        layers,
        weight_names(SELF_ATTENTION, STACKED_EXPERTS),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader, 150_000.0),
        harmless=frozenset({"initial_context_length"}),  # repeated by the rotary parameters
    )
