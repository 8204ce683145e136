"""What one rank holds, against a brute-force assignment of heads, groups, columns and experts to ranks."""

from __future__ import annotations

import time
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import TINY, tiny

from specs.architecture import (
    Architecture,
    Experts,
    Linear,
    WeightTensor,
    load_architecture,
    model_names,
    weight_bytes_per_rank,
    weight_elements_per_rank,
)
from specs.architecture.sharding import obstacle
from specs.document import DType
from specs.errors import InputError

SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 16])


@st.composite
def llama_configs(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads = draw(st.integers(1, 6))
    return {
        "model_type": "llama",
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([2, 4])),
        "hidden_size": draw(st.integers(4, 24)),
        "intermediate_size": draw(st.integers(1, 30)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "vocab_size": draw(st.integers(1, 50)),
        "max_position_embeddings": 64,
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def routed_configs(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(2, 9))
    config = draw(llama_configs()) | {
        "model_type": "qwen3_moe",
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(st.integers(1, 12)),
        "decoder_sparse_step": draw(st.integers(1, 3)),
        "mlp_only_layers": draw(st.sampled_from([[], [0]])),
    }
    del config["mlp_bias"]
    return config


@st.composite
def recurrent_configs(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 4))
    return {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": draw(st.text("M*-E", min_size=1, max_size=8)),
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "intermediate_size": draw(st.integers(1, 20)),
        "mamba_num_heads": groups * draw(st.integers(1, 4)),
        "mamba_head_dim": 2,
        "n_groups": groups,
        "ssm_state_size": 3,
        "conv_kernel": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 6,
        "moe_shared_expert_intermediate_size": draw(st.integers(1, 9)),
        "moe_latent_size": draw(st.sampled_from([None, 4])),
        "vocab_size": 32,
        "max_position_embeddings": 64,
    }


CONFIGS = st.one_of(
    llama_configs(), routed_configs(), recurrent_configs(), st.sampled_from([tiny(name) for name in sorted(TINY)])
)


def dealt(units: int, ranks: int) -> list[int]:
    """Units on each rank when they are dealt out like cards; with fewer units than ranks each rank still needs one."""
    hands = [0] * ranks
    for unit in range(units):
        hands[unit % ranks] += 1
    return [max(1, hand) for hand in hands]


def brute_force(tensor: WeightTensor, tensor_parallel: int, expert_parallel: int) -> int:
    """Elements on the fullest rank, unit by unit."""
    size = prod(tensor.shape)
    whole = size * tensor.count
    if tensor.expert_axis:
        count = tensor.count if tensor.count > 1 else tensor.shape[0]
        whole = whole // count * max(dealt(count, expert_parallel))
        tensor_parallel //= expert_parallel
    if tensor.shard_axis is None:
        return whole
    axis = tensor.shape[tensor.shard_axis]
    segments = tensor.segments or ((axis, axis),)
    assert sum(length for length, _ in segments) == axis
    return whole // axis * sum(length // units * max(dealt(units, tensor_parallel)) for length, units in segments)


@settings(max_examples=120, deadline=None)
@given(CONFIGS, SIZES, st.booleans())
def test_rank_weights_equal_the_brute_force(config: dict[str, Any], tensor_parallel: int, spread: bool) -> None:
    architecture = load_architecture(config)
    expert_parallel = tensor_parallel if spread else 1
    expected = {True: 0, False: 0}
    for tensor in architecture.weights():
        expected[tensor.quantised] += brute_force(tensor, tensor_parallel, expert_parallel)
    assert weight_elements_per_rank(architecture, tensor_parallel, expert_parallel) == (expected[True], expected[False])


@settings(max_examples=120, deadline=None)
@given(CONFIGS, SIZES)
def test_ranks_together_hold_the_model(config: dict[str, Any], tensor_parallel: int) -> None:
    architecture = load_architecture(config)
    tensors = architecture.weights()
    total = architecture.parameter_count().total
    assert total == sum(tensor.elements for tensor in tensors)
    assert sum(weight_elements_per_rank(architecture, 1)) == total
    per_rank = sum(weight_elements_per_rank(architecture, tensor_parallel))
    assert tensor_parallel * per_rank >= total >= per_rank
    whole = sum(tensor.elements for tensor in tensors if tensor.shard_axis is None)
    cut = [tensor for tensor in tensors if tensor.shard_axis is not None]
    units = [units for one in cut for _, units in one.segments or ((0, one.shape[one.shard_axis or 0]),)]
    if all(count % tensor_parallel == 0 for count in units):
        assert tensor_parallel * (per_rank - whole) == total - whole


@settings(max_examples=80, deadline=None)
@given(CONFIGS, st.data())
def test_stages_together_hold_the_model(config: dict[str, Any], data: st.DataObject) -> None:
    architecture = load_architecture(config)
    layers = len(architecture.layers)
    cut = data.draw(st.integers(0, layers))
    first = weight_elements_per_rank(architecture, 2, stage_layers=range(cut), first=True, last=False)
    last = weight_elements_per_rank(architecture, 2, stage_layers=range(cut, layers), first=False, last=True)
    together = weight_elements_per_rank(architecture, 2)
    copy = -(-architecture.vocab_size // 2) * architecture.hidden_size if architecture.tied_embeddings else 0
    assert (first[0] + last[0], first[1] + last[1]) == (together[0], together[1] + copy)


@settings(max_examples=80, deadline=None)
@given(CONFIGS)
def test_more_ranks_never_keep_more(config: dict[str, Any]) -> None:
    architecture = load_architecture(config)
    sizes = range(1, 17)
    kv = [architecture.kv_bytes_per_token(DType.BF16, size) for size in sizes]
    state = [architecture.state_bytes(size) for size in sizes]
    weights = [weight_bytes_per_rank(architecture, DType.BF16, size) for size in sizes]
    for series in (kv, state, weights):
        assert series == sorted(series, reverse=True)


@settings(max_examples=100, deadline=None)
@given(CONFIGS, SIZES)
def test_operators_multiply_exactly_the_quantised_weights(config: dict[str, Any], ranks: int) -> None:
    """The cost room sees operators, the memory room sees tensors: they must be the same matrices, whole and cut."""
    architecture = load_architecture(config)
    for layer, _ in architecture.distinct_layers:
        products = whole = 0
        for operator in layer.operators():
            if isinstance(operator, Linear) and operator.quantised:
                inputs, outputs = operator.rank_shape(ranks)
                products += inputs * outputs
                whole += operator.in_features * operator.out_features
            elif isinstance(operator, Experts):
                experts, inner = operator.rank_shape(ranks, 1)
                ways = 3 if operator.gated else 2
                products += experts * ways * operator.hidden_size * inner
                whole += operator.experts * ways * operator.hidden_size * operator.intermediate_size
        index = architecture.layers.index(layer)
        stage = range(index, index + 1)
        one_layer = weight_elements_per_rank(architecture, ranks, stage_layers=stage, first=False, last=False)
        assert products == one_layer[0]
        assert whole == sum(tensor.elements for tensor in layer.tensors() if tensor.quantised)


@pytest.mark.parametrize("name", model_names())
def test_operators_of_published_models_multiply_all_their_matrices(name: str) -> None:
    """Two FLOPs for each active weight: what operators multiply per token is the active parameter count."""
    architecture = load_architecture(name)
    multiplied = architecture.hidden_size * architecture.vocab_size
    for layer, count in architecture.distinct_layers:
        for operator in layer.operators():
            if isinstance(operator, Linear):
                multiplied += count * operator.in_features * operator.out_features
            elif isinstance(operator, Experts):
                ways = 3 if operator.gated else 2
                inner = operator.hidden_size * operator.intermediate_size
                multiplied += count * operator.experts_per_token * ways * inner
    active = architecture.parameter_count().active
    assert 0.995 * active <= multiplied <= active  # norms, biases and convolutions are the rest


def test_valid_sizes_by_hand() -> None:
    sizes = {
        "meta-llama/Llama-3.1-70B": (1, 2, 4, 8, 16, 32, 64),  # 64 heads, 8 KV heads repeated beyond 8 ranks
        "Qwen/Qwen2.5-7B-Instruct": (1, 2, 4),  # 28 heads of 4 KV heads; 28 ranks would cut 18944 columns unevenly
        "facebook/opt-13b": (1, 2, 4, 5, 8, 10, 20, 40),
        "openai/gpt-oss-20b": (1, 2, 4, 8, 16, 32, 64),
    }
    for name, expected in sizes.items():
        assert load_architecture(name).valid_tensor_parallel(64) == expected


def test_obstacles_say_what_is_in_the_way() -> None:
    llama = load_architecture("meta-llama/Llama-3.1-70B")
    assert llama.tensor_parallel_obstacle(3) == "64 attention heads cannot be split evenly over 3 ranks"
    qwen = load_architecture("Qwen/Qwen2.5-7B-Instruct")
    assert qwen.tensor_parallel_obstacle(7) == "4 KV heads cannot be split evenly over 7 ranks"
    assert llama.tensor_parallel_obstacle(0) == "0 is not a number of ranks"
    prime = load_architecture(
        {**llama.config, "intermediate_size": 28_657}  # a prime
    )
    assert prime.valid_tensor_parallel(64) == (1,)
    assert prime.tensor_parallel_obstacle(2) == "28657 intermediate columns cannot be split evenly over 2 ranks"


def test_scale_blocks_are_never_cut() -> None:
    """Experts of 1536 columns in blocks of 128: 8 ranks would hold 192 each, so experts must be spread instead."""
    blocks = load_architecture("Qwen/Qwen3-235B-A22B-FP8")
    assert blocks.tensor_parallel_obstacle(4, expert_parallel=1) is None
    assert "blocks of 128" in str(blocks.tensor_parallel_obstacle(8, expert_parallel=1))
    assert blocks.tensor_parallel_obstacle(8, expert_parallel=8) is None
    assert blocks.tensor_parallel_obstacle(8) is None
    assert load_architecture("Qwen/Qwen3-235B-A22B").tensor_parallel_obstacle(8, expert_parallel=1) is None
    assert "3 does not divide" in str(blocks.tensor_parallel_obstacle(4, expert_parallel=3))


def test_an_expert_parallelism_that_is_no_division_is_an_input_error() -> None:
    with pytest.raises(InputError, match="does not divide the 8 ranks"):
        weight_elements_per_rank(load_architecture("Qwen/Qwen3-30B-A3B"), 8, 3)


def test_attention_copies_share_the_experts() -> None:
    """8 attention copies on 8 devices: experts are spread over all of them, attention is whole on each."""
    architecture = load_architecture("deepseek-ai/DeepSeek-V3")
    quantised, _ = weight_elements_per_rank(architecture, 1, 8, attention_data_parallel=8)
    experts = 58 * 256 * 3 * 7168 * 2048
    whole, _ = weight_elements_per_rank(architecture, 1)
    assert quantised == whole - experts + experts // 8


def test_the_largest_model_is_cut_within_five_milliseconds() -> None:
    architecture: Architecture = load_architecture("deepseek-ai/DeepSeek-V3")
    weight_elements_per_rank(architecture, 8)
    start = time.process_time()
    for _ in range(10):
        weight_elements_per_rank(architecture, 8, 8, range(31), True, False)
    assert (time.process_time() - start) / 10 < 0.005


def test_obstacle_of_no_layers() -> None:
    assert obstacle((), 1, 7, None) is None
