"""OPT: learned positions, biases everywhere, LayerNorm before each block, a ReLU MLP, tied embeddings."""

from __future__ import annotations

from specs.architecture.families.common import (
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
from specs.architecture.reading import ConfigReader

NAMES = SELF_ATTENTION | {
    "mixer_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
    "o_proj": "self_attn.out_proj",
    "up_proj": "fc1",
    "down_proj": "fc2",
}
OUTSIDE = {
    "embed_tokens": "model.decoder.embed_tokens",
    "embed_positions": "model.decoder.embed_positions",
    "final_norm": "model.decoder.final_layer_norm",
    "lm_head": "lm_head",
}
POSITION_OFFSET = 2  # rows before the first position, kept from the original training code


def read(reader: ConfigReader) -> Architecture:
    """OPT but for the 350M model, whose norms come after each block and whose embedding is narrower."""
    hidden_size = read_hidden_size(reader)
    reader.expect("word_embed_proj_dim", hidden_size)
    for switch in ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"):
        reader.expect(switch, True)
    reader.expect("_remove_final_layer_norm", False)
    activation = read_activation(reader, "activation_function", "relu")
    heads = read_heads(reader, hidden_size)
    layer = Layer(
        hidden_size,
        Attention(
            hidden_size, heads.heads, heads.kv_heads, heads.head_dim, qkv_bias=True, output_bias=True, rotary=False
        ),
        DenseMLP(hidden_size, reader.integer("ffn_dim"), gated=False, bias=True, activation=activation),
        norm_bias=True,
    )
    return assemble(
        reader,
        "opt",
        (layer,) * read_layers(reader),
        weight_names(NAMES, prefix="model.decoder.layers.{layer}.", outside=OUTSIDE),
        hidden_size=hidden_size,
        activation=activation,
        rope=None,
        norm="layer",
        eps=1e-5,
        learned_positions=reader.integer("max_position_embeddings", high=1 << 31) + POSITION_OFFSET,
        tied_default=True,
    )
