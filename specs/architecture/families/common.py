"""What decoder-only families share: sizes of the whole model, plain attention, and names of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from specs.architecture.dialect import read_compute_dtype, read_quantisation
from specs.architecture.layer import Layer
from specs.architecture.model import Architecture, Rope
from specs.architecture.reading import MAX_LAYERS, MAX_SIZE, ConfigReader

# Role -> name within a layer, as Llama's checkpoints have it and most after it.
SELF_ATTENTION = {
    "mixer_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
DENSE_MLP = {"gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj"}
EXPERTS = {
    "router": "mlp.gate",
    "expert_gate_proj": "mlp.experts.{expert}.gate_proj",
    "expert_up_proj": "mlp.experts.{expert}.up_proj",
    "expert_down_proj": "mlp.experts.{expert}.down_proj",
}
OUTSIDE = {"embed_tokens": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"}


def weight_names(
    *within_a_layer: Mapping[str, str], prefix: str = "model.layers.{layer}.", outside: Mapping[str, str] = OUTSIDE
) -> dict[str, str]:
    """Role -> full name, with `{layer}` (and `{expert}`) left to be filled in."""
    names = dict(outside)
    for part in within_a_layer:
        names |= {role: prefix + name for role, name in part.items()}
    return names


@dataclass(frozen=True)
class Heads:
    """Sizes of grouped attention."""

    heads: int
    kv_heads: int
    head_dim: int


def read_heads(reader: ConfigReader, hidden_size: int, default_head_dim: int | None = None) -> Heads:
    """`num_attention_heads`, `num_key_value_heads` (default: as many), `head_dim` (default: hidden size / heads)."""
    heads = reader.integer("num_attention_heads", high=1 << 16)
    kv_heads = reader.integer("num_key_value_heads", heads, high=1 << 16)
    if heads % kv_heads:
        raise reader.error(
            "num_key_value_heads", f"is {kv_heads}, which does not divide {heads} attention heads", "a divisor"
        )
    head_dim = reader.optional_integer("head_dim", high=1 << 14)
    if head_dim is None:
        head_dim = default_head_dim
    if head_dim is None:
        if hidden_size % heads:
            raise reader.error(
                "hidden_size", f"is {hidden_size}, which {heads} heads do not divide", "a multiple of it, or head_dim"
            )
        head_dim = hidden_size // heads
    return Heads(heads, kv_heads, head_dim)


def read_hidden_size(reader: ConfigReader) -> int:
    """Width of the residual stream."""
    return reader.integer("hidden_size", high=1 << 20)


def read_layers(reader: ConfigReader) -> int:
    """Number of layers."""
    return reader.integer("num_hidden_layers", high=MAX_LAYERS)


def read_experts_per_token(reader: ConfigReader, experts: int, key: str = "num_experts_per_tok") -> int:
    """Experts that each token visits, at most all of them."""
    chosen = reader.integer(key)
    if chosen > experts:
        raise reader.error(key, f"is {chosen}, of {experts} experts", "at most the number of experts")
    return chosen


def read_activation(reader: ConfigReader, key: str, *known: str) -> str:
    """The activation's name, one that the family's checkpoints use; the first where absent."""
    return str(reader.expect(key, *known) or known[0])


def assemble(
    reader: ConfigReader,
    family: str,
    layers: tuple[Layer, ...],
    names: Mapping[str, str],
    *,
    hidden_size: int,
    activation: str,
    rope: Rope | None,
    norm: Literal["rms", "layer"] = "rms",
    eps: float | None = None,
    learned_positions: int = 0,
    mtp_layers: int = 0,
    window_rope: Rope | None = None,
    tied_default: bool = False,
    harmless: frozenset[str] = frozenset(),
) -> Architecture:
    """Read what is outside the layers, refuse keys that nobody has read, and build the `Architecture`."""
    architecture = Architecture(
        name=reader.name,
        family=family,
        config=reader.whole,
        hidden_size=hidden_size,
        vocab_size=reader.integer("vocab_size", high=MAX_SIZE),
        max_position_embeddings=reader.integer("max_position_embeddings", high=1 << 31),
        tied_embeddings=reader.boolean("tie_word_embeddings", tied_default),
        layers=layers,
        activation=activation,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6, high=1.0) if eps is None else eps,
        rope=rope,
        norm=norm,
        learned_positions=learned_positions,
        compute_dtype=read_compute_dtype(reader),
        quantisation=read_quantisation(reader),
        mtp_layers=mtp_layers,
        window_rope=window_rope,
        weight_names=names,
    )
    reader.finish(family, harmless)
    return architecture
