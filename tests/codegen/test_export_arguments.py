"""The argument list keeps the plan's limits, and never says what the engine's table does not allow."""

import argparse
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_fixture import (
    CONFIGS,
    GIB,
    changed,
    chat_fp8_group,
    chat_group,
    chat_plan,
    code_group,
    deep_group,
    fleet_plan,
    packed,
    plan_of,
    tools_group,
    with_true_weights,
)

from codegen.exports import export_plan
from codegen.exports.args import EngineArguments, check_arguments, vllm_arguments, vllm_table
from codegen.exports.checks import check_plan
from specs.document import DType
from specs.errors import CapstanError, InputError
from specs.plan import Plan, ReplicaGroup, Route


def engine_parser() -> argparse.ArgumentParser:
    """A parser of `vllm serve` made from the table: what it refuses, the table does not know."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("model")
    kinds = {"int": int, "float": float, "str": str, "enum": str}
    for spec in vllm_table().arguments.values():
        if spec.type == "flag":
            action = argparse.BooleanOptionalAction if spec.negatable else "store_true"
            parser.add_argument(f"--{spec.name}", action=action, default=spec.default)
        else:
            choices = spec.values if spec.type == "enum" else None
            parser.add_argument(f"--{spec.name}", type=kinds[spec.type], choices=choices, default=spec.default)
    return parser


def read_back(words: list[str]) -> argparse.Namespace:
    return engine_parser().parse_args(words)


def arguments_of(plan: Plan, index: int = 0) -> argparse.Namespace:
    check_plan(plan)
    return read_back(vllm_arguments(plan, plan.groups[index]).to_list())


def one_group(group: ReplicaGroup, **changes: object) -> Plan:
    return plan_of((group,), (Route(request_class="all", group=group.id, share=1.0),), **changes)


def test_the_plain_group_keeps_every_limit() -> None:
    plan = chat_plan()
    read, group = arguments_of(plan), plan.groups[0]
    assert read.model == "meta-llama/Llama-3.1-70B"
    assert read.served_model_name == "chat"
    assert (read.tensor_parallel_size, read.pipeline_parallel_size) == (4, 1)
    assert read.max_num_seqs == 64
    assert read.max_num_batched_tokens == 2048
    assert read.max_model_len == 32768
    assert read.gpu_memory_utilization == 0.9
    assert (read.block_size, read.num_gpu_blocks_override) == (16, group.cache.num_blocks)
    assert read.kv_cache_memory_bytes is None
    assert read.dtype == "bfloat16"
    assert read.quantization is None
    assert read.kv_cache_dtype == "auto"  # the model's own type, which is the plan's
    assert read.enable_chunked_prefill is True
    assert read.enable_prefix_caching is False  # the engine's default is True
    assert read.scheduling_policy == "fcfs"
    assert read.scheduler_reserve_full_isl is False  # the engine's default is True, the plan was simulated without
    assert read.data_parallel_size == 1
    assert read.enable_expert_parallel is False


def test_fp8_weights_kv_and_pipeline_stages() -> None:
    plan = one_group(chat_fp8_group())
    made = vllm_arguments(plan, plan.groups[0])
    read = read_back(made.to_list())
    assert (read.quantization, read.kv_cache_dtype) == ("fp8", "fp8")
    assert (read.tensor_parallel_size, read.pipeline_parallel_size) == (2, 2)
    assert dict(made.environment) == {"VLLM_PP_LAYER_PARTITION": "41,39"}


def test_a_checkpoint_that_is_already_fp8_is_not_quantised_again() -> None:
    plan = one_group(with_true_weights(chat_group(weights_dtype="fp8")))
    config = plan.architectures["chat"] | {"quantization_config": {"quant_method": "fp8"}}
    assert arguments_of(plan).quantization == "fp8"
    assert arguments_of(changed(plan, architectures={"chat": config})).quantization is None


def test_a_checkpoint_with_its_own_kv_dtype_does_not_decide_for_the_plan() -> None:
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    config = CONFIGS["chat"][1] | {"quantization_config": quantised}
    group = with_true_weights(chat_group(weights_dtype="fp8"))
    plan = one_group(group, architectures={"chat": config})
    assert arguments_of(plan).kv_cache_dtype == "bfloat16"


def test_a_smaller_checkpoint_is_served_and_said() -> None:
    group = tools_group(weights_dtype="bf16")
    made = vllm_arguments(one_group(group), group)
    assert read_back(made.to_list()).quantization is None
    assert any("says fp4 weights" in note for note in made.notes)


def test_unequal_layers_get_their_kv_cache_in_bytes() -> None:
    group = tools_group()
    read = arguments_of(one_group(group))
    assert read.num_gpu_blocks_override is None
    memory = group.cache.memory
    assert read.kv_cache_memory_bytes <= memory.kv_bytes
    assert read.kv_cache_memory_bytes == group.cache.num_blocks * 16 * memory.kv_bytes_per_token


@pytest.mark.parametrize(("p99", "drain"), [(0.5, 60), (12.0, 60), (31.0, 120), (100.0, 240), (1e5, 3600)])
def test_running_requests_end_before_a_stopped_replica_does(p99: float, drain: int) -> None:
    """Twice the longest simulated request of the group's own classes, in whole minutes."""
    plan = fleet_plan()
    classes = [
        item.model_copy(update={"e2e_s": {"p50": 0.1, "p99": p99}}) if item.request_class == "agents" else item
        for item in plan.predictions.classes
    ]
    plan = changed(plan, predictions__classes=[item.model_dump() for item in classes])
    assert arguments_of(plan, 2).shutdown_timeout == drain
    assert arguments_of(plan, 0).shutdown_timeout == 60  # conversation only: 12 s


@pytest.mark.parametrize("kv_dtype", [DType.BF16, DType.FP8])
def test_latent_attention_gets_its_kv_cache_in_bytes_and_no_block_size(kv_dtype: DType) -> None:
    """MLA kernels take blocks of 32, 64 or 128 tokens, by device and KV type: only the engine knows which it runs."""
    group = deep_group(cache__kv_dtype=kv_dtype, cache__memory__kv_bytes_per_token=30 * 576 * kv_dtype.bytes)
    plan = one_group(group)
    check_plan(plan)
    options = dict(vllm_arguments(plan, group).options)
    assert "block-size" not in options
    assert "num-gpu-blocks-override" not in options
    memory, tokens = group.cache.memory, group.cache.capacity_tokens
    assert options["kv-cache-memory-bytes"] == tokens * memory.kv_bytes_per_token <= memory.kv_bytes
    assert options["kv-cache-dtype"] == {DType.BF16: "auto", DType.FP8: "fp8"}[kv_dtype]
    assert options["max-model-len"] == 16384


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("blocks", [1024, 1030, 1031])
def test_the_longest_request_of_latent_attention_fits_whatever_block_the_engine_picks(block: int, blocks: int) -> None:
    """16 x 1024 tokens are planned; the engine makes whole blocks of the same bytes and keeps one for itself."""
    group = deep_group(cache__num_blocks=blocks)
    made = vllm_arguments(one_group(group), group)
    longest = int(dict(made.options)["max-model-len"])
    assert ceil(longest / block) <= blocks * 16 // block - 1
    assert longest >= 16384 - 2 * 128
    assert any("one KV block for itself" in note for note in made.notes)


def test_latent_attention_with_a_single_block_is_refused() -> None:
    group = deep_group(cache__num_blocks=8, limits__max_model_len=64)
    with pytest.raises(InputError, match="no more than the one block"):
        vllm_arguments(one_group(group), group)


@pytest.mark.parametrize(
    ("config", "uniform"),
    [
        ({"sliding_window": 4096}, False),  # Mistral 7B v0.1
        ({"sliding_window": 32768, "use_sliding_window": False}, True),  # Qwen2
        ({"sliding_window": None}, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"layer_types": ["linear_attention", "full_attention"]}, False),
        ({"hybrid_override_pattern": "M-M*"}, False),
    ],
)
def test_which_models_have_equal_layers(config: dict[str, object], uniform: bool) -> None:
    plan = chat_plan()
    plan = changed(plan, architectures={"chat": plan.architectures["chat"] | config})
    options = dict(vllm_arguments(plan, plan.groups[0]).options)
    assert ("num-gpu-blocks-override" in options) is uniform
    assert ("kv-cache-memory-bytes" in options) is not uniform


def test_the_longest_request_leaves_the_engine_its_own_block() -> None:
    group = chat_group(cache__num_blocks=100, limits__max_model_len=1600)
    made = vllm_arguments(one_group(group), group)
    assert read_back(made.to_list()).max_model_len == 1584
    assert any("one KV block for itself" in note for note in made.notes)


def test_expert_and_data_parallel() -> None:
    layout = {"tensor_parallel": 2, "pipeline_stages": (48,), "attention_data_parallel": 2, "expert_parallel": 4}
    group = with_true_weights(code_group(layout=layout, replicas=1, placement=packed(1, 4)))
    read = arguments_of(one_group(group))
    assert (read.tensor_parallel_size, read.data_parallel_size, read.enable_expert_parallel) == (2, 2, True)


def test_a_declared_checkpoint_is_loaded_under_its_own_name() -> None:
    """An instruct model has the shape of its base model; the engine must still load what was declared."""
    instruct = "meta-llama/Llama-3.1-70B-Instruct"
    assert arguments_of(changed(chat_plan(), spec__models__chat__architecture=instruct)).model == instruct
    local = "/srv/models/llama/config.json"
    assert arguments_of(changed(chat_plan(), spec__models__chat__architecture=local)).model == "/srv/models/llama"


@pytest.mark.parametrize("architecture", [{"model_type": "llama"}, None, ""])
def test_an_inline_model_has_no_checkpoint(architecture: object) -> None:
    plan = changed(chat_plan(), spec__models__chat__architecture=architecture)
    with pytest.raises(InputError, match="no checkpoint to load"):
        export_plan(plan, "vllm")


@pytest.mark.parametrize(
    "option",
    [
        ("max-num-sequences", 8),
        ("max-num-seqs", 0),
        ("max-num-seqs", 8.0),
        ("max-num-seqs", True),
        ("gpu-memory-utilization", 0.0),
        ("gpu-memory-utilization", 1.01),
        ("kv-cache-dtype", "fp7"),
        ("port", 65536),
        ("headless", False),
        ("enable-prefix-caching", "no"),
        ("served-model-name", ""),
    ],
)
def test_what_the_table_does_not_allow_is_a_fault_of_the_export(option: tuple[str, object]) -> None:
    with pytest.raises(CapstanError, match=option[0]) as caught:
        check_arguments((option,))  # type: ignore[arg-type]
    assert not isinstance(caught.value, InputError)


def test_an_argument_is_stated_once() -> None:
    with pytest.raises(CapstanError, match="twice"):
        EngineArguments("model", (("port", 8000),)).with_options(("port", 8001))


def test_the_table_states_its_version_and_sources() -> None:
    table = vllm_table()
    assert table.version == "0.24.0"
    for spec in table.arguments.values():
        assert table.version in spec.source
        assert spec.keeps
        if spec.type == "enum":
            assert spec.values


@st.composite
def groups(draw: st.DrawFn) -> ReplicaGroup:
    """Groups of Qwen3-30B-A3B as a planner might make them: layouts, limits and caches that fit."""
    tensor = draw(st.sampled_from([1, 2, 4]))
    stages = draw(st.sampled_from([(48,), (25, 23)]))
    data = draw(st.sampled_from([1, 2]))
    ranks = tensor * data
    layout = {
        "tensor_parallel": tensor,
        "pipeline_stages": stages,
        "attention_data_parallel": data,
        "expert_parallel": draw(st.sampled_from([1, ranks])),
    }
    block = draw(st.sampled_from([16, 32, 64]))
    blocks = draw(st.integers(2, 20_000))
    kv_dtype = draw(st.sampled_from([DType.BF16, DType.FP8]))
    per_token = max(stages) * 2 * max(1, 4 // tensor) * 128 * kv_dtype.bytes
    kv_bytes = ceil(blocks * block * per_token)
    fraction = draw(st.floats(0.5, 1.0))
    device = 400 * GIB
    memory = {
        "device_bytes": device,
        "available_bytes": int(device * fraction),
        "weights_bytes": 0,
        "activation_bytes": GIB,
        "context_bytes": GIB,
        "collective_bytes": 0,
        "graph_bytes": 0,
        "kv_bytes": kv_bytes,
        "kv_bytes_per_token": per_token,
    }
    sequences = draw(st.integers(1, 512))
    replicas = draw(st.integers(1, 3))
    gpus = ranks * len(stages)
    group = code_group(
        layout=layout,
        weights_dtype=draw(st.sampled_from([DType.BF16, DType.FP8])),
        limits={
            "max_num_seqs": sequences,
            "max_num_batched_tokens": draw(st.integers(max(sequences, 16), 16384)),
            "max_model_len": draw(st.integers(1, min(blocks * block, 40960))),
        },
        cache={
            "kv_dtype": kv_dtype,
            "block_size_tokens": block,
            "num_blocks": blocks,
            "prefix_caching": draw(st.booleans()),
            "memory": memory,
        },
        replicas=replicas,
        placement=packed(replicas, gpus, gpus_per_node=gpus),
    )
    return with_true_weights(group)


@settings(max_examples=60, deadline=None)
@given(groups())
def test_arguments_respect_plan_and_table_whatever_the_plan(group: ReplicaGroup) -> None:
    plan = one_group(group)
    read, limits, cache = arguments_of(plan), group.limits, group.cache
    assert read.max_num_seqs == limits.max_num_seqs
    assert read.max_num_batched_tokens == limits.max_num_batched_tokens
    assert limits.max_model_len - cache.block_size_tokens <= read.max_model_len <= limits.max_model_len
    # One block is the engine's own; the longest request must fit the rest.
    assert ceil(read.max_model_len / read.block_size) <= read.num_gpu_blocks_override - 1
    assert (read.block_size, read.num_gpu_blocks_override) == (cache.block_size_tokens, cache.num_blocks)
    memory = cache.memory
    assert read.gpu_memory_utilization == pytest.approx(memory.available_bytes / memory.device_bytes, abs=5.1e-5)
    assert read.enable_prefix_caching is cache.prefix_caching
    assert (read.quantization == "fp8") is (group.weights_dtype is DType.FP8)
    assert (read.kv_cache_dtype == "fp8") is (cache.kv_dtype is DType.FP8)
    gpus = read.tensor_parallel_size * read.pipeline_parallel_size * read.data_parallel_size
    assert gpus == group.layout.gpus
    assert read.enable_expert_parallel is (group.layout.expert_parallel > 1)
    made = vllm_arguments(plan, group)
    assert made == vllm_arguments(plan, group)
    stages = dict(made.environment).get("VLLM_PP_LAYER_PARTITION")
    assert stages == (None if len(group.layout.pipeline_stages) == 1 else "25,23")


def test_both_exports_use_the_same_arguments() -> None:
    plan = fleet_plan()
    for group in plan.groups:
        words = vllm_arguments(plan, group).to_list()
        manifest = export_plan(plan, "kubernetes").files[f"{group.id}.yaml"]
        assert all(word in manifest for word in words)


def test_placed_experts_get_as_many_copies_as_planned() -> None:
    experts = {"slots_per_rank": 33, "physical_to_logical": [[*range(128), 0, 1, 2, 3]] * 48, "skew": 1.2}
    group = code_group(
        layout={
            "tensor_parallel": 4,
            "pipeline_stages": (48,),
            "expert_parallel": 4,
            "redundant_experts": 4,
        },
        replicas=1,
        placement=packed(1, 4),
        experts=experts | {"skew_bound": 1.1},
    )
    made = vllm_arguments(one_group(group), group)
    assert dict(made.options)["enable-eplb"] is True
    assert dict(made.options)["eplb-config"] == '{"num_redundant_experts":4}'
    assert any("1.20 times the mean load, is not handed to it" in note for note in made.notes)
    plain = changed(group, experts=None)
    assert "enable-eplb" not in dict(vllm_arguments(one_group(plain), plain).options)
