"""MiniMax-M2: norms over all query heads and over all key heads at once, half-rotary heads, experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from specs.architecture.dialect import read_rope
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
from specs.architecture.families.mixtral import MIXTRAL_EXPERTS
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import MixtureOfExperts
from specs.architecture.model import Architecture, Rope
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader

NAMES = MIXTRAL_EXPERTS | {"correction_bias": "block_sparse_moe.e_score_correction_bias"}


def read(reader: ConfigReader) -> Architecture:
    """Scores are sigmoids, chosen after adding the correction bias, and divided by their sum."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size)
    activation = read_activation(reader, "hidden_act", "silu")
    reader.expect("use_qk_norm", True)
    reader.expect("qk_norm_type", "per_layer")
    reader.expect("scoring_func", "sigmoid")
    reader.expect("shared_intermediate_size", 0)
    count = read_layers(reader)
    reader.expect("attn_type_list", [1] * count)  # 0 would be linear attention
    experts = reader.integer("num_local_experts", low=2, high=MAX_EXPERTS)
    layer = Layer(
        hidden_size,
        Attention(hidden_size, heads.heads, heads.kv_heads, heads.head_dim, qk_norm=True, norm_all_heads=True),
        MixtureOfExperts(
            hidden_size,
            experts,
            read_experts_per_token(reader, experts),
            reader.integer("intermediate_size"),
            activation=activation,
            correction_bias=reader.boolean("use_routing_bias", True),
            scoring="sigmoid",
        ),
    )
    modules = reader.integer("num_mtp_modules", 0, low=0, high=MAX_LAYERS)
    of_a_module = reader.integer("mtp_transformer_layers", 1, low=0, high=MAX_LAYERS)
    return assemble(
        reader,
        "minimax_m2",
        (layer,) * count,
        weight_names(SELF_ATTENTION, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_partial_rope(reader, heads.head_dim),
        mtp_layers=modules * of_a_module if reader.boolean("use_mtp", False) else 0,
    )


def read_partial_rope(reader: ConfigReader, head_dim: int) -> Rope:
    """`rotary_dim` is the older way to say `partial_rotary_factor`."""
    rope = read_rope(reader, 5_000_000.0)
    rotary_dim = reader.optional_integer("rotary_dim", high=head_dim)
    return rope if rotary_dim is None else replace(rope, partial_rotary_factor=rotary_dim / head_dim)
