"""Qwen3.5 and Qwen3-Next: gated delta-net layers, every fourth one gated attention; an MLP, or experts.

Experts have a shared one beside them, whose output a gate scales.

The checkpoints of the multimodal models hold the text model under `model.language_model` (see `multimodal`).
"""

from __future__ import annotations

from dataclasses import replace

from specs.architecture.dialect import COMPUTE_DTYPES, read_rope
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
from specs.architecture.mixers import Attention, Mixer
from specs.architecture.mlps import MLP, DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader
from specs.architecture.recurrent import GatedDeltaNet

NAMES = {
    "in_proj_qkvz": "linear_attn.in_proj_qkvz",
    "in_proj_ba": "linear_attn.in_proj_ba",
    "in_proj_qkv": "linear_attn.in_proj_qkv",
    "in_proj_z": "linear_attn.in_proj_z",
    "in_proj_b": "linear_attn.in_proj_b",
    "in_proj_a": "linear_attn.in_proj_a",
    "conv1d": "linear_attn.conv1d",
    "A_log": "linear_attn.A_log",
    "dt_bias": "linear_attn.dt_bias",
    "gated_norm": "linear_attn.norm",
    "out_proj": "linear_attn.out_proj",
    "experts_gate_up_proj": "mlp.experts.gate_up_proj",
    "experts_down_proj": "mlp.experts.down_proj",
    "shared_gate": "mlp.shared_expert_gate",
    "shared_gate_proj": "mlp.shared_expert.gate_proj",
    "shared_up_proj": "mlp.shared_expert.up_proj",
    "shared_down_proj": "mlp.shared_expert.down_proj",
}
KINDS = ("linear_attention", "full_attention")


def read_dense(reader: ConfigReader) -> Architecture:
    """Qwen3.5 with a dense MLP in every layer."""
    activation = read_activation(reader, "hidden_act", "silu")
    mlp = DenseMLP(read_hidden_size(reader), reader.integer("intermediate_size"), activation=activation)
    return _read(reader, "qwen3_5", mlp, activation)


def read_sparse(reader: ConfigReader) -> Architecture:
    """Qwen3.5 with experts in every layer: a softmax over all, those of the chosen ones divided by their sum.

    Checkpoints in 16 bits hold all experts of a layer in one tensor, quantised ones each expert alone.
    """
    return _read_sparse(reader, "qwen3_5_moe", stacked=not reader.has("quantization_config"))


def read_next(reader: ConfigReader) -> Architecture:
    """Qwen3-Next: the same layers, with each expert alone and the delta net's projections fused in the checkpoint."""
    return _read_sparse(reader, "qwen3_next", stacked=False)


def _read_sparse(reader: ConfigReader, family: str, *, stacked: bool) -> Architecture:
    activation = read_activation(reader, "hidden_act", "silu")
    hidden_size = read_hidden_size(reader)
    reader.expect("mlp_only_layers", [])
    reader.expect("decoder_sparse_step", 1)
    experts = reader.integer("num_experts", low=2, high=MAX_EXPERTS)
    mlp = MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        reader.integer("moe_intermediate_size"),
        activation=activation,
        stacked="out_in" if stacked else "no",
        shared_intermediate_size=reader.integer("shared_expert_intermediate_size"),
        shared_gate=True,
        normalise=reader.boolean("norm_topk_prob", True),
    )
    return _read(reader, family, mlp, activation)


def _read(reader: ConfigReader, family: str, mlp: MLP, activation: str) -> Architecture:
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size, default_head_dim=256)
    reader.expect("attn_output_gate", True)
    reader.expect("mtp_use_dedicated_embeddings", False)
    bias = reader.boolean("attention_bias", False)
    full = Attention(
        hidden_size,
        heads.heads,
        heads.kv_heads,
        heads.head_dim,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        gated=True,
    )
    linear = replace(_read_delta_net(reader, hidden_size), fused=family == "qwen3_next")
    mixers: dict[str, Mixer] = {"full_attention": full, "linear_attention": linear}
    return assemble(
        reader,
        family,
        tuple(Layer(hidden_size, mixers[kind], mlp) for kind in _read_kinds(reader)),
        weight_names(SELF_ATTENTION, DENSE_MLP, EXPERTS, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader, 10_000_000.0, default_partial=0.25),
        mtp_layers=reader.integer("mtp_num_hidden_layers", 0, low=0, high=MAX_LAYERS),
        # Qwen3-Next states a width of dense layers that no layer has
        harmless=frozenset({"full_attention_interval", "mlp_only_layers", "intermediate_size"}),
    )


def _read_kinds(reader: ConfigReader) -> tuple[str, ...]:
    """`layer_types`, or full attention in every `full_attention_interval`-th layer."""
    count, types = read_layers(reader), reader.raw("layer_types")
    if types is None:
        interval = reader.integer("full_attention_interval", 4, high=MAX_LAYERS)
        return tuple(KINDS[(index + 1) % interval == 0] for index in range(count))
    if not isinstance(types, list) or len(types) != count or not all(one in KINDS for one in types):
        raise reader.error("layer_types", "does not fit the model", f"{count} entries, each {' or '.join(KINDS)}")
    return tuple(types)


def _read_delta_net(reader: ConfigReader, hidden_size: int) -> GatedDeltaNet:
    key_heads = reader.integer("linear_num_key_heads", high=1 << 16)
    value_heads = reader.integer("linear_num_value_heads", high=1 << 16)
    if value_heads % key_heads:
        what = f"is {value_heads}, no multiple of {key_heads} key heads"
        raise reader.error("linear_num_value_heads", what, "a multiple of linear_num_key_heads")
    state_dtype = str(reader.expect("mamba_ssm_dtype", *COMPUTE_DTYPES) or "float32")
    return GatedDeltaNet(
        hidden_size,
        key_heads,
        value_heads,
        reader.integer("linear_key_head_dim", high=1 << 14),
        reader.integer("linear_value_head_dim", high=1 << 14),
        reader.integer("linear_conv_kernel_dim", high=1 << 10),
        state_element_bytes=int(COMPUTE_DTYPES[state_dtype].bytes),
    )
