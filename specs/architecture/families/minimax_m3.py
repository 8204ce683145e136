"""MiniMax-M3: grouped attention that, after the first layers, sees blocks of keys which an indexer chooses; experts.

The text model. An index head of every KV head scores all keys; the best `sparse_topk_blocks` blocks are attended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from specs.architecture.families.minimax_m2 import NAMES as MINIMAX_EXPERTS
from specs.architecture.families.minimax_m2 import read_partial_rope
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention, Indexer
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader

NAMES = {
    "index_q_proj": "self_attn.index_q_proj",
    "index_k_proj": "self_attn.index_k_proj",
    "index_q_norm": "self_attn.index_q_norm",
    "index_k_norm": "self_attn.index_k_norm",
    "shared_gate_proj": "block_sparse_moe.shared_experts.gate_proj",
    "shared_up_proj": "block_sparse_moe.shared_experts.up_proj",
    "shared_down_proj": "block_sparse_moe.shared_experts.down_proj",
}
# Numbers of the activation, and what `moe_layer_freq` and `intermediate_size` say as well.
HARMLESS = frozenset({"swiglu_alpha", "swiglu_limit", "first_k_dense_replace", "use_gemma_norm", "num_mtp_modules"})
# Blocks that are always attended are among the chosen ones; how scores of a block are joined changes no size.
SPARSE_HARMLESS = ("sparse_init_block", "sparse_local_block", "sparse_score_type", "sparse_disable_index_value")


def read(reader: ConfigReader) -> Architecture:
    """Scores of experts are sigmoids, chosen after adding the correction bias, and divided by their sum."""
    hidden_size = read_hidden_size(reader)
    heads = read_heads(reader, hidden_size)
    activation = read_activation(reader, "hidden_act", "swigluoai")
    reader.expect("use_qk_norm", True)
    reader.expect("qk_norm_type", "per_head")
    reader.expect("attention_output_gate", False)
    count = read_layers(reader)
    full = Attention(hidden_size, heads.heads, heads.kv_heads, heads.head_dim, qk_norm=True)
    indexer, sparse = _read_indexer(reader, heads.kv_heads, count)
    mixers = tuple(replace(full, indexer=indexer) if one else full for one in sparse)
    experts = _read_experts(reader, hidden_size, activation)
    dense = DenseMLP(hidden_size, reader.integer("dense_intermediate_size"), activation=activation)
    routed = _flags(reader, "moe_layer_freq", reader.raw("moe_layer_freq"), count)
    return assemble(
        reader,
        "minimax_m3",
        tuple(Layer(hidden_size, mixers[index], experts if routed[index] else dense) for index in range(count)),
        weight_names(SELF_ATTENTION, DENSE_MLP, MINIMAX_EXPERTS, NAMES),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_partial_rope(reader, heads.head_dim),
        mtp_layers=reader.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS),
        harmless=HARMLESS,
    )


def _read_indexer(reader: ConfigReader, kv_heads: int, count: int) -> tuple[Indexer | None, tuple[bool, ...]]:
    """The indexer, and which layers have one."""
    key = "sparse_attention_config"
    found = reader.raw(key)
    if not found:
        return None, (False,) * count
    if not isinstance(found, Mapping):
        raise reader.error(key, "is not a mapping", "the sizes of the indexer")
    inner = reader.nested(key, {})
    inner.expect("use_sparse_attention", True)
    inner.expect("sparse_num_index_heads", kv_heads)
    for name in SPARSE_HARMLESS:
        inner.raw(name)
    indexer = Indexer(
        kv_heads,
        inner.integer("sparse_index_dim", high=1 << 14),
        inner.integer("sparse_topk_blocks", high=1 << 20) * inner.integer("sparse_block_size", high=1 << 20),
        query_rank=None,
        weighted=False,
        query_norm=True,
        eight_bit=False,
    )
    layers = _flags(inner, "sparse_attention_freq", inner.raw("sparse_attention_freq"), count)
    inner.finish("minimax_m3")
    return indexer, layers


def _flags(reader: ConfigReader, key: str, found: Any, count: int) -> tuple[bool, ...]:
    """A list of 0 or 1 for each layer."""
    if not isinstance(found, list) or len(found) != count or not all(one in (0, 1) for one in found):
        raise reader.error(key, "does not fit the model", f"{count} entries, each 0 or 1")
    return tuple(bool(one) for one in found)


def _read_experts(reader: ConfigReader, hidden_size: int, activation: str) -> MixtureOfExperts:
    reader.expect("scoring_func", "sigmoid")
    experts = reader.integer("num_local_experts", low=2, high=MAX_EXPERTS)
    width = reader.integer("intermediate_size")
    reader.expect("moe_intermediate_size", width)
    shared = reader.integer("n_shared_experts", 1, low=0, high=MAX_EXPERTS)
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        width,
        activation=activation,
        shared_intermediate_size=shared * reader.integer("shared_intermediate_size", 0, low=0),
        correction_bias=reader.boolean("use_routing_bias", True),
        scoring="sigmoid",
        scaling=reader.number("routed_scaling_factor", 1.0),
    )
