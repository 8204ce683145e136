"""MiMo-V2-Flash: windowed attention with sinks and, every sixth layer, full attention with half the KV heads.

Keys are wider than values. Layers are routed but for the first.
"""

from __future__ import annotations

from specs.architecture.dialect import read_layer_ropes
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
from specs.architecture.reading import MAX_EXPERTS, ConfigReader

NAMES = {"sinks": "self_attn.attention_sink_bias", "correction_bias": "mlp.gate.e_score_correction_bias"}
# The scale of values is a number; the other two say the window again.
HARMLESS = frozenset({"attention_value_scale", "attention_chunk_size", "layernorm_epsilon"})


def read(reader: ConfigReader) -> Architecture:
    """`hybrid_layer_pattern` (1 = windowed) and `moe_layer_freq` (1 = routed), or transformers' words for them."""
    hidden_size = read_hidden_size(reader)
    activation = read_activation(reader, "hidden_act", "silu")
    count = read_layers(reader)
    windowed = _read_kinds(reader, count, "hybrid_layer_pattern", "layer_types", "full_attention", "sliding_attention")
    routed = _read_kinds(reader, count, "moe_layer_freq", "mlp_layer_types", "dense", "sparse")
    mixers = _read_attention(reader, hidden_size)
    sparse = _read_experts(reader, hidden_size, activation)
    dense = DenseMLP(hidden_size, reader.integer("intermediate_size"), activation=activation)
    full_rope, window_rope = read_layer_ropes(reader, "swa_rope_theta")
    return assemble(
        reader,
        "mimo_v2_flash",
        tuple(Layer(hidden_size, mixers[w], sparse if r else dense) for w, r in zip(windowed, routed, strict=True)),
        weight_names(SELF_ATTENTION, DENSE_MLP, EXPERTS, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=full_rope,
        window_rope=window_rope,
        eps=reader.number("layernorm_epsilon", reader.number("rms_norm_eps", 1e-5, high=1.0), high=1.0),
        harmless=HARMLESS,
    )


def _read_kinds(
    reader: ConfigReader, count: int, pattern_key: str, types_key: str, zero: str, one: str
) -> tuple[bool, ...]:
    """Of each layer whether it is `one`: from a list of 0 and 1, or of the two words."""
    pattern, types = reader.raw(pattern_key), reader.raw(types_key)
    key, found, words = (pattern_key, pattern, (0, 1)) if pattern is not None else (types_key, types, (zero, one))
    if found is None:
        raise reader.missing(pattern_key)
    if not isinstance(found, list) or len(found) != count or not all(entry in words for entry in found):
        raise reader.error(key, "does not fit the model", f"{count} entries, each {words[0]} or {words[1]}")
    return tuple(entry == words[1] for entry in found)


def _read_attention(reader: ConfigReader, hidden_size: int) -> dict[bool, Attention]:
    """Attention without and with a window."""
    heads = read_heads(reader, hidden_size, default_head_dim=192)
    value_dim = reader.integer("v_head_dim", heads.head_dim, high=1 << 14)
    bias = reader.boolean("attention_bias", False)
    reader.expect("swa_num_attention_heads", heads.heads)
    reader.expect("swa_head_dim", heads.head_dim)
    reader.expect("swa_v_head_dim", value_dim)
    kv_heads = reader.integer("swa_num_key_value_heads", 2 * heads.kv_heads, high=1 << 16)
    if heads.heads % kv_heads:
        what = f"is {kv_heads}, which does not divide {heads.heads} attention heads"
        raise reader.error("swa_num_key_value_heads", what, "a divisor")
    # the reference looks back `sliding_window_size` keys from the query's own
    window = reader.integer("sliding_window", high=1 << 31)
    back = reader.optional_integer("sliding_window_size", high=1 << 31)
    window = window if back is None else back + 1
    sinks = {
        False: reader.boolean("add_full_attention_sink_bias", False),
        True: reader.boolean("add_swa_attention_sink_bias", True),
    }
    return {
        windowed: Attention(
            hidden_size,
            heads.heads,
            kv_heads if windowed else heads.kv_heads,
            heads.head_dim,
            window if windowed else None,
            qkv_bias=bias,
            sinks=sinks[windowed],
            value_dim=value_dim,
        )
        for windowed in (False, True)
    }


def _read_experts(reader: ConfigReader, hidden_size: int, activation: str) -> MixtureOfExperts:
    """Chosen and scored as DeepSeek-V3's; no shared expert."""
    reader.expect("scoring_func", "sigmoid")
    reader.expect("topk_method", "noaux_tc")
    reader.expect("n_shared_experts", 0)
    reader.expect("n_group", 1)
    reader.expect("topk_group", 1)
    experts = reader.integer("n_routed_experts", low=2, high=MAX_EXPERTS)
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        reader.integer("moe_intermediate_size"),
        activation=activation,
        correction_bias=True,
        scoring="sigmoid",
        normalise=reader.boolean("norm_topk_prob", True),
        scaling=reader.number("routed_scaling_factor", 1.0),
    )
