"""The list of operations: counted work against closed forms, every form of parallelism, the tables made from it."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.latency import RooflineLatency, latency_of, seen_pairs
from planner.cost.operations import operations
from planner.cost.stages import split_stages
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes
from planner.cost.step_work import Operation, StepShape, measure
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.plan import Layout
from specs.profile import KernelFactors

EIGHT, SEVENTY, MOE, MLA = (
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen3-235B-A22B",
    "deepseek-ai/DeepSeek-V3",
)
ONE_TOKEN = StepShape.of(decodes=1.0, keys=1.0)


def listed(
    model: str,
    *,
    pipeline: int = 1,
    device: str = "h100",
    weights: DType = DType.BF16,
    fitted: bool = False,
    **layout: int | bool,
) -> tuple[Operation, ...]:
    architecture, facts, profile = load_architecture(model), load_device(device), load_profile(device)
    chosen = Layout(pipeline_stages=split_stages(architecture, pipeline), **layout)
    latency = latency_of(facts, profile) if fitted else RooflineLatency(facts, profile)
    return operations(architecture, chosen, weights, DType.BF16, facts, profile, latency)


def total(found: tuple[Operation, ...], kind: str, what: str, shape: StepShape = ONE_TOKEN) -> float:
    return float(sum(o.count * getattr(o.measure(shape), what) for o in found if o.kind == kind)[0])


def named(found: tuple[Operation, ...], name: str) -> list[Operation]:
    return [operation for operation in found if operation.name == name]


@pytest.mark.parametrize("model", [EIGHT, SEVENTY])
def test_a_token_multiplies_every_active_parameter_once(model: str) -> None:
    architecture = load_architecture(model)
    norms = (2 * len(architecture.layers) + 1) * architecture.hidden_size
    products = architecture.parameter_count().active - norms
    assert total(listed(model), "gemm", "flops") == 2.0 * products


def test_a_token_reads_every_active_weight_once() -> None:
    architecture = load_architecture(EIGHT)
    norms = (2 * len(architecture.layers) + 1) * architecture.hidden_size
    weights = 2.0 * (architecture.parameter_count().active - norms)
    read = total(listed(EIGHT), "gemm", "bytes")
    assert weights < read < weights * 1.001  # and a row of activations in and out


def test_routed_experts_multiply_what_is_active() -> None:
    architecture = load_architecture(MOE)
    layer = architecture.layers[0]
    active = 3 * 4096 * 1536 * 8 * len(architecture.layers)
    assert layer.mlp is not None
    assert total(listed(MOE), "experts", "flops") == 2.0 * active


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_tensor_parallel_ranks_share_the_work_evenly(ranks: int) -> None:
    shape = StepShape.of(decodes=64.0, keys=2000.0, chunks=2.0, new=512.0, cached=1024.0)
    whole, part = listed(SEVENTY), listed(SEVENTY, tensor_parallel=ranks)
    for kind in ("gemm", "attention"):
        assert total(part, kind, "flops", shape) == pytest.approx(total(whole, kind, "flops", shape) / ranks)
    assert not named(whole, "all_reduce")
    assert sum(operation.count for operation in named(part, "all_reduce")) == 2 * 80 + 1


def test_sequence_parallelism_halves_each_all_reduce_and_cuts_the_norms() -> None:
    plain, cut = listed(SEVENTY, tensor_parallel=4), listed(SEVENTY, tensor_parallel=4, sequence_parallel=True)
    assert not named(cut, "all_reduce")
    for name in ("reduce_scatter", "all_gather"):
        assert sum(o.count for o in named(cut, name)) == sum(o.count for o in named(plain, "all_reduce"))
    shape = StepShape.of(decodes=64.0, keys=100.0)
    (norm,), (narrow,) = named(plain, "mixer_norm"), named(cut, "mixer_norm")
    assert narrow.measure(shape).bytes[0] == norm.measure(shape).bytes[0] / 4
    assert narrow.shard == "tokens"
    both = sum(named(cut, name)[0].measure(shape).seconds[0] for name in ("reduce_scatter", "all_gather"))
    # a little more than one all-reduce: its latency is paid twice
    assert 1.0 <= both / named(plain, "all_reduce")[0].measure(shape).seconds[0] <= 2.0


def test_attention_replicas_share_tokens_and_all_experts() -> None:
    shape = StepShape.of(decodes=64.0, keys=2000.0)
    alone = listed(MOE)
    spread = listed(MOE, attention_data_parallel=8, expert_parallel=8)
    assert total(spread, "attention", "flops", shape) == total(alone, "attention", "flops", shape) / 8
    assert total(spread, "experts", "flops", shape) == total(alone, "experts", "flops", shape) / 8
    for name in ("dispatch", "combine"):
        (exchange,) = named(spread, name)
        assert exchange.measure(shape).seconds[0] > 0
        assert exchange.shard == "ranks"
    assert not named(alone, "dispatch")
    assert not named(spread, "all_reduce")


def test_a_skewed_router_makes_the_exchange_longer() -> None:
    facts, profile = load_device("h100"), load_profile("h100")
    assert 1.0 < latency_of(facts, profile).router_skew(8) < 8.0
    assert RooflineLatency(facts, profile).router_skew(8) == 1.0


@pytest.mark.parametrize("fitted", [True, False])
def test_collectives_beyond_a_domain_pay_for_the_network(fitted: bool) -> None:
    """Two nodes of eight: what both do inside, and the parts across; never less than the wire between them takes."""
    facts, profile = load_device("h100"), load_profile("h100")
    latency = latency_of(facts, profile) if fitted else RooflineLatency(facts, profile)
    message = np.array([1e5, 1e7, 1e9])
    inside, across = latency.all_reduce(message, 8), latency.all_reduce(message, 16)
    assert (across > inside).all()
    assert (across >= message / 8 / facts.nic_bytes_per_s).all()
    for half in (latency.all_gather, latency.reduce_scatter):
        assert (half(message, 16) > half(message, 8)).all()
        assert (half(message, 16) < across).all()


def test_experts_spread_whole_or_cut_cost_the_same_arithmetic() -> None:
    shape = StepShape.of(decodes=512.0, keys=100.0)
    cut, whole = listed(MOE, tensor_parallel=8), listed(MOE, tensor_parallel=8, expert_parallel=8)
    assert total(cut, "experts", "flops", shape) == total(whole, "experts", "flops", shape)
    assert total(cut, "experts", "bytes", shape) == pytest.approx(total(whole, "experts", "bytes", shape), rel=0.2)


def test_stages_hand_over_inside_nodes_and_between_them() -> None:
    def transfers(found: tuple[Operation, ...]) -> list[int]:
        return [operation.count for operation in named(found, "hand_over")]

    assert transfers(listed(SEVENTY, tensor_parallel=2, pipeline=4)) == [3]
    assert transfers(listed(SEVENTY, tensor_parallel=4, pipeline=4)) == [2, 1]
    assert transfers(listed(SEVENTY, tensor_parallel=8, pipeline=4)) == [3]
    inside, between = (
        named(listed(SEVENTY, tensor_parallel=ranks, pipeline=4), "hand_over")[-1].measure(ONE_TOKEN).seconds[0]
        for ranks in (2, 8)
    )
    assert between > inside


def test_nothing_costs_nothing() -> None:
    for model in (EIGHT, MLA, "nvidia/Nemotron-H-56B-Base-8K", "openai/gpt-oss-20b"):
        weights = DType.FP8 if model == MLA else DType.BF16
        cost = measure(listed(model, weights=weights), StepShape.of(decodes=0.0))
        assert (cost.flops[0], cost.bytes[0], cost.seconds[0]) == (0.0, 0.0, 0.0)


def test_pairs_of_chunks_add_up_to_the_whole_prompt() -> None:
    for window in (None, 100):
        whole = seen_pairs(np.array([1000.0]), np.array([0.0]), window)
        parts = sum(seen_pairs(np.array([250.0]), np.array([250.0 * i]), window) for i in range(4))
        assert parts == pytest.approx(whole)


@pytest.mark.parametrize(
    ("model", "device", "ranks", "weights"),
    [
        (EIGHT, "h100", 1, DType.BF16),
        (SEVENTY, "h200", 4, DType.FP8),
        (MOE, "h200", 8, DType.BF16),
        ("openai/gpt-oss-120b", "h100", 2, DType.FP4),
        (MLA, "h200", 8, DType.FP8),
        (EIGHT, "mi300x", 1, DType.BF16),
    ],
)
def test_the_tables_of_a_step_are_those_of_its_operations(model: str, device: str, ranks: int, weights: DType) -> None:
    """Whatever a step holds, `StepTimes` gives what its operations add up to, interpolation aside."""
    architecture = load_architecture(model)
    engine = load_engine("vllm").model_copy(update={"kernels": KernelFactors()})
    facts, profile = load_device(device), load_profile(device)
    layout = Layout(tensor_parallel=ranks, pipeline_stages=split_stages(architecture, 1))
    times = step_times(architecture, layout, weights, DType.BF16, facts, profile, engine, 256, 4096)
    found = listed(model, device=device, weights=weights, fitted=True, tensor_parallel=ranks)
    draw = np.random.default_rng(3)
    errors = []
    for _ in range(150):
        decodes, chunks = int(draw.integers(0, 200)), int(draw.integers(0, 3))
        if not decodes and not chunks:
            continue
        keys, new, cached = int(draw.integers(1, 8000)), int(draw.integers(1, 1200)), int(draw.integers(0, 4000))
        window = architecture.window_tokens
        shape = StepShape.of(
            decodes=float(decodes),
            keys=float(keys),
            chunks=float(chunks),
            new=float(new if chunks else 0),
            cached=float(cached if chunks else 0),
            window=window,
        )
        wanted = measure(found, shape).seconds[0] + engine.step_overhead_s
        wanted += engine.sequence_overhead_s * (decodes + chunks) + (engine.prefill_step_s if chunks else 0.0)
        given = times.step_s(
            decodes + chunks * new,
            decodes + chunks,
            decodes + chunks,
            decodes,
            decodes * keys,
            decodes * min(keys, window or keys),
            [(new, cached)] * chunks,
        )
        errors.append(given / wanted - 1.0)
    # batches are padded to sizes that take less: up to a fifth below what 8-bit products of odd sizes would take
    assert -0.2 <= float(np.median(errors)) < 0.01
    assert float(np.quantile(errors, 0.95)) < 0.05
    if weights is not DType.FP8:
        assert float(np.quantile(np.abs(errors), 0.9)) < 0.06


def test_an_engine_scales_its_kernels_by_kind() -> None:
    """Twice as slow products, thrice as slow decode attention: what is theirs grows by as much, the rest by nothing."""
    architecture, facts, profile = load_architecture(EIGHT), load_device("h100"), load_profile("h100")
    layout = Layout(pipeline_stages=(32,))

    def times(**factors: float) -> StepTimes:
        engine = load_engine("vllm").model_copy(update={"kernels": KernelFactors(**factors)})
        return step_times(architecture, layout, DType.BF16, DType.BF16, facts, profile, engine, 64, 512)

    plain, gemm, attention = times(), times(gemm=2.0), times(attention=3.0)
    products = sum(o.count * o.measure(StepShape.of(decodes=64.0, keys=1.0)).seconds[0] for o in listed_gemms())
    # a little less where the plain batch is padded to a size that takes less
    assert 0.85 * products < gemm.tokens_s[64] - plain.tokens_s[64] <= products * (1 + 1e-9)
    assert gemm.decode_s(64, 64_000, 0) == plain.decode_s(64, 64_000, 0)
    assert attention.decode_s(64, 64_000, 0) == pytest.approx(3 * plain.decode_s(64, 64_000, 0))
    assert attention.chunk_s(256, 0) == plain.chunk_s(256, 0)


def listed_gemms() -> list[Operation]:
    return [o for o in listed(EIGHT, fitted=True) if o.kind == "gemm" and o.name != "lm_head"]


def test_cold_weights_take_longer_than_a_warm_cache_and_never_less_than_the_memory() -> None:
    """4096 x 4096 in 16 bit fits the L2 of an H100; in a step it comes from memory."""
    facts, profile = load_device("h100"), load_profile("h100")
    seconds = latency_of(facts, profile).gemm(np.array([1.0]), 4096, 4096, DType.BF16)[0]
    assert seconds > 2 * 4096 * 4096 / facts.hbm_bytes_per_s
