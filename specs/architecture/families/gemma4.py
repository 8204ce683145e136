"""Gemma 4: windowed and full attention of two shapes, five to eight norms a layer, an MLP beside routed experts.

Full attention has wider and fewer KV heads, whose values may be their keys before norm and rotary embedding. The
models with per-layer embeddings or shared KV caches (E2B, E4B) are refused by those keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from specs.architecture.dialect import read_layer_ropes, read_windows
from specs.architecture.families.common import (
    DENSE_MLP,
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
from specs.architecture.mlps import MLP, DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, ConfigReader

NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
# Of the MLP's output, of the experts' input, of the experts' output.
ROUTED_NORMS = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
NAMES = {
    **{role: role for role in (*NORMS, *ROUTED_NORMS, "layer_scalar")},
    "mlp_norm": "pre_feedforward_layernorm",
    "router": "router.proj",
    "router_input_scale": "router.scale",
    "router_expert_scale": "router.per_expert_scale",
    "experts_gate_up_proj": "experts.gate_up_proj",
    "experts_down_proj": "experts.down_proj",
    "shared_gate_proj": "mlp.gate_proj",
    "shared_up_proj": "mlp.up_proj",
    "shared_down_proj": "mlp.down_proj",
}
# Of the embedding of layers that have none (hidden_size_per_layer_input 0), and of the logits.
HARMLESS = frozenset({"vocab_size_per_layer_input", "final_logit_softcapping"})


def read(reader: ConfigReader) -> Architecture:
    """The MLP stands as the experts' shared one; its sum and theirs are normalised, hence reduced, apart."""
    hidden_size = read_hidden_size(reader)
    activation = read_activation(reader, "hidden_activation", "gelu_pytorch_tanh")
    reader.expect("attention_bias", False)
    reader.expect("hidden_size_per_layer_input", 0)
    reader.expect("num_kv_shared_layers", 0)
    reader.expect("use_double_wide_mlp", False)
    reader.expect("use_bidirectional_attention", "vision")
    routed = reader.boolean("enable_moe_block", False)
    mlp = _read_mlp(reader, hidden_size, activation, routed)
    norms = (*NORMS, *(ROUTED_NORMS if routed else ()))
    windows = read_windows(reader, read_layers(reader), "all")
    windowed, full = _read_attention(reader, hidden_size, windows)
    rope, window_rope = read_layer_ropes(reader)
    return assemble(
        reader,
        "gemma4",
        tuple(
            Layer(hidden_size, full if window is None else windowed, mlp, more_norms=norms, scalars=("layer_scalar",))
            for window in windows
        ),
        weight_names(SELF_ATTENTION, DENSE_MLP, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=rope,
        window_rope=window_rope,
        tied_default=True,
        harmless=HARMLESS,
    )


def _read_attention(
    reader: ConfigReader, hidden_size: int, windows: tuple[int | None, ...]
) -> tuple[Attention, Attention]:
    """With a window and without. transformers 5.20 and later write the sizes without as `per_layer_config`."""
    heads = read_heads(reader, hidden_size, default_head_dim=256)
    same = reader.boolean("attention_k_eq_v", False)
    own = _read_overrides(reader, [str(index) for index, window in enumerate(windows) if window is None])
    wide = own.integer("global_head_dim", 512, high=1 << 14)
    kv_heads = own.integer("num_global_key_value_heads", heads.kv_heads, high=1 << 16)
    if not same:
        kv_heads = heads.kv_heads
    if heads.heads % kv_heads:
        what = f"is {kv_heads}, which does not divide {heads.heads} attention heads"
        raise reader.error("num_global_key_value_heads", what, "a divisor")
    window = next((one for one in windows if one is not None), None)
    return (
        Attention(hidden_size, heads.heads, heads.kv_heads, heads.head_dim, window, qk_norm=True),
        Attention(hidden_size, heads.heads, kv_heads, wide, qk_norm=True, values_are_keys=same),
    )


def _read_overrides(reader: ConfigReader, full_layers: list[str]) -> ConfigReader:
    """A reader of the two sizes that full attention has for itself."""
    key, known = (
        "per_layer_config",
        {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"},
    )
    found = reader.raw(key)
    if not found:
        return reader
    sizes = list(found.values()) if isinstance(found, Mapping) else []
    if not sizes or sorted(found) != sorted(full_layers) or any(one != sizes[0] for one in sizes):
        raise reader.error(key, "is not one set of sizes for the layers of full attention", "the same sizes for each")
    if not isinstance(sizes[0], Mapping) or not set(sizes[0]) <= set(known):
        raise reader.error(key, f"changes more than {' and '.join(known)}", "these alone")
    return ConfigReader({known[name]: value for name, value in sizes[0].items()}, reader.name, reader.file)


def _read_mlp(reader: ConfigReader, hidden_size: int, activation: str, routed: bool) -> MLP:
    width = reader.integer("intermediate_size")
    if not routed:
        return DenseMLP(hidden_size, width, activation=activation)
    experts = reader.integer("num_experts", low=2, high=MAX_EXPERTS)
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts, "top_k_experts"),
        reader.integer("moe_intermediate_size"),
        activation=activation,
        stacked="out_in",
        shared_intermediate_size=width,
        shared_reduced_apart=True,
        router_scales=True,
    )
