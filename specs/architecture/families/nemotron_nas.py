"""Nemotron Super and Ultra (DeciLM): Llama's layers, each of a shape of its own that a search found.

`block_configs` gives every layer the query heads that share a KV head and the width of its MLP, or leaves one of the
two out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specs.architecture.dialect import read_rope
from specs.architecture.families.common import (
    DENSE_MLP,
    SELF_ATTENTION,
    assemble,
    read_activation,
    read_hidden_size,
    read_layers,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import DenseMLP
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_SIZE, ConfigReader

_WIDTH_UNIT = 256


def read(reader: ConfigReader) -> Architecture:
    """`num_key_value_heads` and `intermediate_size` are null: every layer has its own."""
    hidden_size = read_hidden_size(reader)
    heads = reader.integer("num_attention_heads", high=1 << 16)
    if hidden_size % heads:
        raise reader.error("hidden_size", f"is {hidden_size}, which {heads} heads do not divide", "a multiple of it")
    reader.expect("num_key_value_heads")
    reader.expect("intermediate_size")
    reader.expect("attention_bias", False)
    reader.expect("mlp_bias", False)
    activation = read_activation(reader, "hidden_act", "silu")
    count, blocks = read_layers(reader), reader.raw("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count:
        raise reader.error("block_configs", "does not fit the model", f"a list of {count} layers")
    layers = tuple(_read_layer(reader, index, block, hidden_size, heads) for index, block in enumerate(blocks))
    return assemble(
        reader,
        "nemotron-nas",
        layers,
        weight_names(SELF_ATTENTION, DENSE_MLP),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader),
    )


def _read_layer(reader: ConfigReader, index: int, block: Any, hidden_size: int, heads: int) -> Layer:
    parts = {}
    for name, known in (("attention", "n_heads_in_group"), ("ffn", "ffn_mult")):
        part = block.get(name) if isinstance(block, Mapping) else None
        if not isinstance(part, Mapping):
            raise reader.error("block_configs", f"says nothing of the {name} of layer {index}", "a mapping")
        for key, value in part.items():
            if value and key not in (known, "no_op"):
                raise reader.error("block_configs", f"has {key} = {value!r} in layer {index}", "no such statement")
        parts[name] = None if part.get("no_op") else part.get(known)
    group, multiple = parts["attention"], parts["ffn"]
    if group is None and multiple is None:
        raise reader.error("block_configs", f"leaves nothing in layer {index}", "attention, an MLP, or both")
    mixer = mlp = None
    if group is not None:
        if isinstance(group, bool) or not isinstance(group, int) or group < 1 or heads % group:
            what = f"has n_heads_in_group = {group!r} in layer {index}"
            raise reader.error("block_configs", what, f"a divisor of {heads} heads")
        mixer = Attention(hidden_size, heads, heads // group, hidden_size // heads)
    if multiple is not None:
        if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < multiple <= MAX_SIZE:
            raise reader.error("block_configs", f"has ffn_mult = {multiple!r} in layer {index}", "a number above 0")
        mlp = DenseMLP(hidden_size, _width(float(multiple), hidden_size))
    return Layer(hidden_size, mixer, mlp)


def _width(multiple: float, hidden_size: int) -> int:
    """Two thirds of `multiple` hidden sizes, as gated MLPs have it, rounded up to whole units."""
    return max(1, -(-int(2 * multiple * hidden_size / 3) // _WIDTH_UNIT)) * _WIDTH_UNIT
