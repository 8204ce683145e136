"""DeepSeek-V3, R1, V3.2, Kimi-K2 and GLM-5: latent attention; experts with a shared one after the first dense layers.

DeepSeek-V3.2 and GLM-5 have an indexer beside attention, which chooses the keys that a query sees; in GLM-5.2 and later
most layers take the choice of an earlier one.

Multi-token-prediction layers (`num_nextn_predict_layers`) follow the others in the checkpoint. They are counted in
`Architecture.mtp_layers` and are no part of the served model here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specs.architecture.dialect import read_rope, reads_as_excluded
from specs.architecture.families.common import (
    DENSE_MLP,
    EXPERTS,
    SELF_ATTENTION,
    assemble,
    read_activation,
    read_experts_per_token,
    read_hidden_size,
    read_layers,
    weight_names,
)
from specs.architecture.layer import Layer
from specs.architecture.mixers import Indexer, LatentAttention
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture
from specs.architecture.reading import MAX_EXPERTS, MAX_LAYERS, ConfigReader

LATENT_ATTENTION = {
    "q_a_proj": "self_attn.q_a_proj",
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b_proj": "self_attn.q_b_proj",
    "kv_a_proj_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b_proj": "self_attn.kv_b_proj",
}
INDEXER = {
    "index_q_proj": "self_attn.indexer.wq_b",
    "index_k_proj": "self_attn.indexer.wk",
    "index_k_norm": "self_attn.indexer.k_norm",
    "index_weights": "self_attn.indexer.weights_proj",
}
SHARED_EXPERT = {
    "correction_bias": "mlp.gate.e_score_correction_bias",
    "shared_gate_proj": "mlp.shared_experts.gate_proj",
    "shared_up_proj": "mlp.shared_experts.up_proj",
    "shared_down_proj": "mlp.shared_experts.down_proj",
}
# Said again by other keys, or of training only.
_HARMLESS = """
    ep_size seq_aux aux_loss_alpha head_dim rope_interleave indexer_rope_interleave index_share_for_mtp_iteration
    index_topk_freq index_skip_topk_offset index_topk_pattern moe_router_dtype tf_legacy_loss
"""
HARMLESS = frozenset(_HARMLESS.split())
INDEXER_KINDS = ("full", "shared")


def read(reader: ConfigReader) -> Architecture:
    """DeepSeek-V3, R1 and Kimi-K2."""
    return _read(reader, "deepseek_v3", sparse_attention=False)


def read_v32(reader: ConfigReader) -> Architecture:
    """DeepSeek-V3.2: an indexer in every layer."""
    return _read(reader, "deepseek_v32", sparse_attention=True)


def read_glm(reader: ConfigReader) -> Architecture:
    """GLM-5: an indexer in every layer, or in those that `indexer_types` calls full."""
    return _read(reader, "glm_moe_dsa", sparse_attention=True)


def _read(reader: ConfigReader, family: str, *, sparse_attention: bool) -> Architecture:
    hidden_size = read_hidden_size(reader)
    activation = read_activation(reader, "hidden_act", "silu")
    attention = _read_attention(reader, hidden_size)
    sparse = _read_experts(reader, hidden_size, activation)
    dense = DenseMLP(
        hidden_size,
        reader.integer("intermediate_size"),
        activation=activation,
        quantised=not reads_as_excluded(reader, "model.layers.0.mlp.down_proj"),
    )
    count = read_layers(reader)
    mixers: tuple[LatentAttention, ...] = (attention,) * count
    if sparse_attention:
        reader.expect("layer_types", ["indexed_attention"] * count)  # as transformers writes them
        mixers = tuple(replace(attention, indexer=indexer) for indexer in _read_indexers(reader, attention, count))
    layers = tuple(
        Layer(hidden_size, mixer, sparse if routed else dense)
        for mixer, routed in zip(mixers, _read_routed(reader, count), strict=True)
    )
    return assemble(
        reader,
        family,
        layers,
        weight_names(SELF_ATTENTION, LATENT_ATTENTION, INDEXER, DENSE_MLP, EXPERTS, SHARED_EXPERT),
        hidden_size=hidden_size,
        activation=activation,
        rope=read_rope(reader),
        mtp_layers=reader.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS),
        harmless=HARMLESS,
    )


def _read_attention(reader: ConfigReader, hidden_size: int) -> LatentAttention:
    heads = reader.integer("num_attention_heads", high=1 << 16)
    reader.expect("num_key_value_heads", heads)
    rope_dim = reader.integer("qk_rope_head_dim", high=1 << 14)
    nope_dim = reader.integer("qk_nope_head_dim", high=1 << 14)
    reader.expect("qk_head_dim", rope_dim + nope_dim)
    return LatentAttention(
        hidden_size,
        heads,
        query_rank=reader.optional_integer("q_lora_rank"),
        kv_rank=reader.integer("kv_lora_rank"),
        rope_dim=rope_dim,
        nope_dim=nope_dim,
        value_dim=reader.integer("v_head_dim", high=1 << 14),
        bias=reader.boolean("attention_bias", False),
        quantised=not reads_as_excluded(reader, "model.layers.0.self_attn.o_proj"),
    )


def _read_routed(reader: ConfigReader, count: int) -> tuple[bool, ...]:
    """Which layers have experts: `mlp_layer_types`, or those from `first_k_dense_replace` on."""
    first = reader.integer("first_k_dense_replace", 0, low=0)
    step, types = reader.integer("moe_layer_freq", 1, high=MAX_LAYERS), reader.raw("mlp_layer_types")
    if types is None:
        return tuple(index >= first and index % step == 0 for index in range(count))
    return tuple(kind == "sparse" for kind in _words(reader, "mlp_layer_types", types, count, ("dense", "sparse")))


def _read_indexers(reader: ConfigReader, attention: LatentAttention, count: int) -> tuple[Indexer, ...]:
    """The indexer of each layer; a "shared" one takes the choice of the last "full" one before it."""
    indexer = Indexer(
        reader.integer("index_n_heads", high=1 << 16),
        reader.integer("index_head_dim", high=1 << 14),
        reader.integer("index_topk", high=1 << 31),
        attention.query_rank,
        quantised=attention.quantised,
    )
    kinds = _read_indexer_kinds(reader, count)
    if kinds[0] != "full":
        raise reader.error("indexer_types", "begins with a shared choice", "full in layer 0")
    return tuple(replace(indexer, own=kind == "full") for kind in kinds)


def _read_indexer_kinds(reader: ConfigReader, count: int) -> tuple[str, ...]:
    """`indexer_types`, or `index_topk_pattern` (F, S), or every `index_topk_freq`-th layer after an offset."""
    types, pattern = reader.raw("indexer_types"), reader.raw("index_topk_pattern")
    if types is not None:
        return _words(reader, "indexer_types", types, count, INDEXER_KINDS)
    if pattern is not None:
        found = list(pattern) if isinstance(pattern, str) else pattern
        letters = _words(reader, "index_topk_pattern", found, count, ("F", "S"))
        return tuple(INDEXER_KINDS[letter == "S"] for letter in letters)
    every = reader.integer("index_topk_freq", 1, high=MAX_LAYERS)
    offset = reader.integer("index_skip_topk_offset", 2, low=0, high=MAX_LAYERS)
    return tuple(INDEXER_KINDS[max(index - offset + 1, 0) % every != 0] for index in range(count))


def _words(reader: ConfigReader, key: str, found: Any, count: int, words: tuple[str, ...]) -> tuple[str, ...]:
    """A list of one of `words` for each layer."""
    if not isinstance(found, list) or len(found) != count or not all(one in words for one in found):
        raise reader.error(key, "does not fit the model", f"{count} entries, each {' or '.join(words)}")
    return tuple(found)


def _read_experts(reader: ConfigReader, hidden_size: int, activation: str) -> MixtureOfExperts:
    """Scores are sigmoids, chosen within `topk_group` of `n_group` groups after adding the correction bias."""
    reader.expect("scoring_func", "sigmoid")
    reader.expect("topk_method", "noaux_tc")
    experts = reader.integer("n_routed_experts", low=2, high=MAX_EXPERTS)
    width = reader.integer("moe_intermediate_size")
    groups = reader.integer("n_group", 1, high=MAX_EXPERTS)
    groups_per_token = reader.integer("topk_group", 1, high=MAX_EXPERTS)
    if experts % groups or groups_per_token > groups:
        what = f"is {groups}, with {experts} experts and topk_group {groups_per_token}"
        raise reader.error("n_group", what, "a divisor of the experts, not below topk_group")
    return MixtureOfExperts(
        hidden_size,
        experts,
        read_experts_per_token(reader, experts),
        width,
        activation=activation,
        shared_intermediate_size=width * reader.integer("n_shared_experts", 0, low=0, high=MAX_EXPERTS),
        shared_quantised=not reads_as_excluded(reader, "model.layers.1.mlp.shared_experts.down_proj"),
        correction_bias=True,
        scoring="sigmoid",
        normalise=reader.boolean("norm_topk_prob", True),
        scaling=reader.number("routed_scaling_factor", 1.0),
        expert_groups=groups,
        expert_groups_per_token=groups_per_token,
    )
