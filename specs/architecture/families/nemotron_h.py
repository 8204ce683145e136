"""Nemotron-H and Nemotron 3: a pattern of Mamba-2, attention, MLP and expert layers, each with one norm.

Attention has no positional encoding. `hybrid_override_pattern` (M, *, -, E) or `layers_block_type` names the layers.
"""

from __future__ import annotations

from specs.architecture.dialect import COMPUTE_DTYPES
from specs.architecture.families.common import (
    assemble,
    read_activation,
    read_experts_per_token,
    read_hidden_size,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader
from specs.architecture.recurrent import Recurrent

PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
NAMES = {
    "mixer_norm": "norm",
    "mlp_norm": "norm",
    "q_proj": "mixer.q_proj",
    "k_proj": "mixer.k_proj",
    "v_proj": "mixer.v_proj",
    "o_proj": "mixer.o_proj",
    "in_proj": "mixer.in_proj",
    "conv1d": "mixer.conv1d",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
    "dt_bias": "mixer.dt_bias",
    "gated_norm": "mixer.norm",
    "out_proj": "mixer.out_proj",
    "up_proj": "mixer.up_proj",
    "down_proj": "mixer.down_proj",
    "router": "mixer.gate",
    "correction_bias": "mixer.gate.e_score_correction_bias",
    "latent_down_proj": "mixer.fc1_latent_proj",
    "latent_up_proj": "mixer.fc2_latent_proj",
    "expert_up_proj": "mixer.experts.{expert}.up_proj",
    "expert_down_proj": "mixer.experts.{expert}.down_proj",
    "shared_up_proj": "mixer.shared_experts.up_proj",
    "shared_down_proj": "mixer.shared_experts.down_proj",
}
OUTSIDE = {"embed_tokens": "backbone.embeddings", "final_norm": "backbone.norm_f", "lm_head": "lm_head"}
# Said again by other keys (`expand`: the heads and their size), of rotary embedding, which is not used, or of numerics.
_HARMLESS = """
    expand rope_theta partial_rotary_factor time_step_min time_step_max time_step_floor time_step_limit time_step_rank
    chunk_size residual_in_fp32 num_logits_to_keep use_mamba_kernels moe_shared_expert_overlap norm_eps
    mtp_hybrid_override_pattern mtp_layers_block_type
"""
HARMLESS = frozenset(_HARMLESS.split())


def read(reader: ConfigReader) -> Architecture:
    """Each entry of the pattern is a layer; equal entries are equal layers."""
    hidden_size = read_hidden_size(reader)
    activation = read_activation(reader, "mlp_hidden_act", "relu2")
    reader.expect("sliding_window")
    kinds = _read_pattern(reader)
    build = {
        "mamba": lambda: Layer(hidden_size, _read_mamba(reader, hidden_size), None),
        "attention": lambda: Layer(hidden_size, _read_attention(reader, hidden_size), None),
        "mlp": lambda: Layer(hidden_size, None, _read_mlp(reader, hidden_size, activation)),
        "moe": lambda: Layer(hidden_size, None, _read_experts(reader, hidden_size, activation)),
    }
    # Sizes of kinds of layers that the pattern does not use may stand in the config; they are read and forgotten.
    layers = {kind: build[kind]() for kind in dict.fromkeys(kinds)}
    unused = frozenset(key for kind, keys in KEYS_OF_KIND.items() if kind not in layers for key in keys)
    return assemble(
        reader,
        "nemotron_h",
        tuple(layers[kind] for kind in kinds),
        weight_names(NAMES, prefix="backbone.layers.{layer}.", outside=OUTSIDE),
        hidden_size=hidden_size,
        activation=activation,
        rope=None,
        eps=reader.number("layer_norm_epsilon", reader.number("rms_norm_eps", 1e-5, high=1.0), high=1.0),
        mtp_layers=reader.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS),
        harmless=HARMLESS | unused,
    )


KEYS_OF_KIND = {
    "mamba": ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_conv_bias"),
    "attention": ("num_attention_heads", "num_key_value_heads", "head_dim", "attention_head_dim"),
    "mlp": ("intermediate_size",),
    "moe": (
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "moe_latent_size",
        "n_shared_experts",
        "norm_topk_prob",
        "routed_scaling_factor",
        "n_group",
        "topk_group",
    ),
}


def _read_pattern(reader: ConfigReader) -> tuple[str, ...]:
    types, pattern = reader.raw("layers_block_type"), reader.raw("hybrid_override_pattern")
    if types is None and pattern is None:
        raise reader.missing("hybrid_override_pattern")
    key = "hybrid_override_pattern" if types is None else "layers_block_type"
    expected = f"a string of {' '.join(PATTERN)}" if types is None else f"a list of {', '.join(PATTERN.values())}"
    found = pattern if types is None else types
    if not isinstance(found, str if types is None else list) or not 0 < len(found) <= MAX_LAYERS:
        raise reader.error(key, "does not describe the layers", expected)
    kinds = tuple(PATTERN.get(one, one) if isinstance(one, str) else "?" for one in found)
    unknown = [one for one in kinds if one not in PATTERN.values()]
    if unknown:
        raise reader.error(key, f"names a layer of unknown kind {unknown[0]!r}", expected)
    stated = reader.optional_integer("num_hidden_layers", high=MAX_LAYERS)
    if stated is not None and stated != len(kinds):
        raise reader.error("num_hidden_layers", f"is {stated}, but {key} names {len(kinds)} layers", str(len(kinds)))
    return kinds


def _read_attention(reader: ConfigReader, hidden_size: int) -> Attention:
    heads = reader.integer("num_attention_heads", high=1 << 16)
    kv_heads = reader.integer("num_key_value_heads", heads, high=1 << 16)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads", "a divisor")
    head_dim = reader.integer("attention_head_dim", reader.integer("head_dim", 128, high=1 << 14), high=1 << 14)
    bias = reader.boolean("attention_bias", False)
    return Attention(hidden_size, heads, kv_heads, head_dim, qkv_bias=bias, output_bias=bias, rotary=False)


def _read_mamba(reader: ConfigReader, hidden_size: int) -> Recurrent:
    reader.expect("mamba_hidden_act", "silu")
    reader.expect("use_bias", False)
    heads, groups = reader.integer("mamba_num_heads", high=1 << 16), reader.integer("n_groups", high=1 << 16)
    if heads % groups:
        raise reader.error("n_groups", f"is {groups}, which does not divide {heads} Mamba heads", "a divisor")
    state_dtype = str(reader.expect("mamba_ssm_cache_dtype", *COMPUTE_DTYPES) or "bfloat16")
    return Recurrent(
        hidden_size,
        heads,
        reader.integer("mamba_head_dim", high=1 << 14),
        groups,
        reader.integer("ssm_state_size", high=1 << 16),
        reader.integer("conv_kernel", high=1 << 10),
        conv_bias=reader.boolean("use_conv_bias", True),
        projection_bias=reader.boolean("mamba_proj_bias", False),
        state_element_bytes=int(COMPUTE_DTYPES[state_dtype].bytes),
    )


def _read_mlp(reader: ConfigReader, hidden_size: int, activation: str) -> DenseMLP:
    bias = reader.boolean("mlp_bias", False)
    return DenseMLP(hidden_size, reader.integer("intermediate_size"), gated=False, bias=bias, activation=activation)


def _read_experts(reader: ConfigReader, hidden_size: int, activation: str) -> MixtureOfExperts:
    """Not gated; scores as DeepSeek-V3's. With `moe_latent_size` the routed experts work on a narrower projection."""
    reader.expect("mlp_bias", False)
    experts = reader.integer("n_routed_experts", low=2, high=MAX_EXPERTS)
    shared = reader.integer("n_shared_experts", 1, low=0, high=MAX_EXPERTS)
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        reader.integer("moe_intermediate_size"),
        gated=False,
        activation=activation,
        latent_size=reader.optional_integer("moe_latent_size"),
        shared_intermediate_size=shared * reader.integer("moe_shared_expert_intermediate_size"),
        correction_bias=True,
        scoring="sigmoid",
        normalise=reader.boolean("norm_topk_prob", True),
        scaling=reader.number("routed_scaling_factor", 1.0),
        expert_groups=reader.integer("n_group", 1, high=MAX_EXPERTS),
        expert_groups_per_token=reader.integer("topk_group", 1, high=MAX_EXPERTS),
    )
