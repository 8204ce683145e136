"""Qwen3-MoE: Qwen3's attention; experts in the layers that `decoder_sparse_step` and `mlp_only_layers` leave them."""

from __future__ import annotations

from specs.architecture.dialect import read_rope, read_windows
from specs.architecture.families.common import (
    DENSE_MLP,
    EXPERTS,
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
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader


def read(reader: ConfigReader) -> Architecture:
    """Scores are a softmax over all experts; `norm_topk_prob` divides those of the chosen ones by their sum."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size)
    activation = read_activation(reader, "hidden_act", "silu")
    bias = reader.boolean("attention_bias", False)
    reader.expect("qkv_bias", bias)
    reader.expect("use_qk_norm", True)
    # transformers 5 writes `num_local_experts` when it saves a model of this family
    key = "num_experts" if reader.has("num_experts") else "num_local_experts"
    experts = reader.integer(key if reader.has(key) else "num_experts", low=2, high=MAX_EXPERTS)
    sparse = MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        reader.integer("moe_intermediate_size"),
        activation=activation,
        normalise=reader.boolean("norm_topk_prob", False),
    )
    dense = DenseMLP(hidden_size, reader.integer("intermediate_size"), activation=activation)
    count = read_layers(reader)
    is_sparse = _sparse_layers(reader, count)
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
                qk_norm=True,
            ),
            sparse if routed else dense,
        )
        for window, routed in zip(read_windows(reader, count, "switch"), is_sparse, strict=True)
    )
    names = weight_names(SELF_ATTENTION, DENSE_MLP, EXPERTS)
    rope = read_rope(reader)
    return assemble(reader, "qwen3_moe", layers, names, hidden_size=hidden_size, activation=activation, rope=rope)


def _sparse_layers(reader: ConfigReader, count: int) -> tuple[bool, ...]:
    """Layer i has experts if it is not in `mlp_only_layers` and i + 1 is a multiple of `decoder_sparse_step`."""
    step = reader.integer("decoder_sparse_step", 1, high=MAX_LAYERS)
    dense = reader.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(one, int) and 0 <= one < count for one in dense):
        raise reader.error("mlp_only_layers", "does not fit the model", f"a list of layer indices below {count}")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(count))
