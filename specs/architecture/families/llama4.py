"""Llama 4: chunked attention with rotary embedding and, every fourth layer, full attention without; routed layers.

Attention within a chunk is expressed as a window of the chunk's size: never fewer keys than the chunk gives, and the
same KV cache at most. Query-key norms of Llama 4 have no weights.
"""

from __future__ import annotations

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
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader

NAMES = {
    "gate_proj": "feed_forward.gate_proj",
    "up_proj": "feed_forward.up_proj",
    "down_proj": "feed_forward.down_proj",
    "router": "feed_forward.router",
    "experts_gate_up_proj": "feed_forward.experts.gate_up_proj",
    "experts_down_proj": "feed_forward.experts.down_proj",
    "shared_gate_proj": "feed_forward.shared_expert.gate_proj",
    "shared_up_proj": "feed_forward.shared_expert.up_proj",
    "shared_down_proj": "feed_forward.shared_expert.down_proj",
}
# Numbers of the softmax's temperature, and what other keys say again.
HARMLESS = frozenset({"attn_temperature_tuning", "floor_scale", "attn_scale"})


def read(reader: ConfigReader) -> Architecture:
    """The score is the sigmoid of the chosen expert's logit and scales the expert's input."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size)
    activation = read_activation(reader, "hidden_act", "silu")
    bias = reader.boolean("attention_bias", False)
    reader.boolean("use_qk_norm", True)
    experts, width = reader.integer("num_local_experts", low=2, high=MAX_EXPERTS), reader.integer("intermediate_size")
    sparse = MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        width,
        activation=activation,
        stacked="in_out",
        shared_intermediate_size=width,
        scoring="sigmoid",
        normalise=False,
    )
    dense = DenseMLP(hidden_size, reader.integer("intermediate_size_mlp"), activation=activation)
    count = read_layers(reader)
    routed, windows = _read_routed(reader, count), _read_windows(reader, count)
    layers = tuple(
        Layer(
            hidden_size,
            Attention(
                hidden_size,
                heads.heads,
                heads.kv_heads,
                heads.head_dim,
                windows[index],
                qkv_bias=bias,
                output_bias=bias,
                rotary=windows[index] is not None,
            ),
            sparse if index in routed else dense,
        )
        for index in range(count)
    )
    return assemble(
        reader,
        "llama4",
        layers,
        weight_names(SELF_ATTENTION, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader, 500_000.0),
        harmless=HARMLESS,
    )


def _read_routed(reader: ConfigReader, count: int) -> frozenset[int]:
    """`moe_layers`, or every `interleave_moe_layer_step`-th layer."""
    step, stated = reader.integer("interleave_moe_layer_step", 1, high=MAX_LAYERS), reader.raw("moe_layers")
    if stated is None:
        return frozenset(range(step - 1, count, step))
    if not isinstance(stated, list) or not all(isinstance(one, int) and 0 <= one < count for one in stated):
        raise reader.error("moe_layers", "does not fit the model", f"a list of layer indices below {count}")
    return frozenset(stated)


def _read_windows(reader: ConfigReader, count: int) -> tuple[int | None, ...]:
    """The chunk of each layer, None where attention is full (and without rotary embedding)."""
    chunk = reader.integer("attention_chunk_size", 8192, high=1 << 31)
    interval, rotary = reader.integer("no_rope_layer_interval", 4, high=MAX_LAYERS), reader.raw("no_rope_layers")
    if not rotary:
        rotary = [int((index + 1) % interval != 0) for index in range(count)]
    if not isinstance(rotary, list) or len(rotary) != count or not all(one in (0, 1) for one in rotary):
        raise reader.error("no_rope_layers", "does not fit the model", f"{count} entries, 1 with and 0 without rotary")
    reader.expect("layer_types", ["chunked_attention" if one else "full_attention" for one in rotary])
    return tuple(chunk if one else None for one in rotary)
