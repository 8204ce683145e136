"""Llama 2 and 3, Mistral, Qwen2, Qwen3 and MiMo: grouped attention with rotary embedding, gated MLP, RMSNorm.

They differ in biases (Qwen2: always on QKV; Llama, Qwen3: `attention_bias` on all four projections), in query-key norms
(Qwen3), in explicit head sizes, and in which layers may be windowed.
"""

from __future__ import annotations

from typing import Literal

from specs.architecture.dialect import read_rope, read_windows
from specs.architecture.families.common import (
    DENSE_MLP,
    SELF_ATTENTION,
    assemble,
    read_activation,
    read_heads,
    read_hidden_size,
    read_layers,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import DenseMLP
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_LAYERS, ConfigReader


def read_llama(reader: ConfigReader) -> Architecture:
    """Llama 2 and 3. `attention_bias` and `mlp_bias` are switches of the config; no windows."""
    bias = reader.boolean("attention_bias", False)
    mlp_bias = reader.boolean("mlp_bias", False)
    return _read(reader, "llama", windows="none", qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def read_mistral(reader: ConfigReader) -> Architecture:
    """Mistral 7B and its like: `sliding_window`, where set, holds in every layer."""
    return _read(reader, "mistral", windows="all")


def read_qwen2(reader: ConfigReader) -> Architecture:
    """Qwen2 and Qwen2.5: biases on query, key and value."""
    reader.expect("use_mrope", False)
    return _read(reader, "qwen2", windows="switch", qkv_bias=True)


def read_mimo(reader: ConfigReader) -> Architecture:
    """MiMo-7B: Qwen2's layers, with multi-token-prediction layers after them."""
    reader.expect("use_mrope", False)
    reader.expect("attention_bias", True)
    return _read(reader, "mimo", windows="switch", qkv_bias=True)


def read_qwen3(reader: ConfigReader) -> Architecture:
    """Qwen3: norms on queries and keys, heads of 128 unless stated."""
    bias = reader.boolean("attention_bias", False)
    return _read(reader, "qwen3", windows="switch", qkv_bias=bias, output_bias=bias, qk_norm=True, default_head_dim=128)


def _read(
    reader: ConfigReader,
    family: str,
    *,
    windows: Literal["none", "all", "switch"],
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    default_head_dim: int | None = None,
) -> Architecture:
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size, default_head_dim)
    activation = read_activation(reader, "hidden_act", "silu")
    mlp = DenseMLP(hidden_size, reader.integer("intermediate_size"), bias=mlp_bias, activation=activation)
    layers = tuple(
        Layer(
            hidden_size,
            Attention(
                hidden_size,
                heads.heads,
                heads.kv_heads,
                heads.head_dim,
                window,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                qk_norm=qk_norm,
            ),
            mlp,
        )
        for window in read_windows(reader, read_layers(reader), windows)
    )
    names = weight_names(SELF_ATTENTION, DENSE_MLP)
    return assemble(
        reader,
        family,
        layers,
        names,
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader),
        mtp_layers=reader.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS) if family == "mimo" else 0,
    )
