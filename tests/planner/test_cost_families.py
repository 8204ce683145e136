"""Costs of what only some families have: sparse attention, the gated delta net, values narrower than keys."""

from __future__ import annotations

import pytest

from planner.cost.latency import RooflineLatency
from planner.cost.operations import operations
from planner.cost.step import step_times
from planner.cost.step_work import Operation, StepShape
from specs.architecture import Architecture, load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.plan import Layout

DEVICE, PROFILE = load_device("h200"), load_profile("h200")
RATE = 1e-9  # relative


def of(architecture: Architecture, tensor_parallel: int, expert_parallel: int = 1) -> dict[str, list[Operation]]:
    layout = Layout(
        tensor_parallel=tensor_parallel,
        pipeline_stages=(len(architecture.layers),),
        expert_parallel=expert_parallel,
    )
    latency = RooflineLatency(DEVICE, PROFILE)
    found: dict[str, list[Operation]] = {}
    for operation in operations(architecture, layout, DType.FP8, DType.BF16, DEVICE, PROFILE, latency):
        found.setdefault(operation.name, []).append(operation)
    return found


def flops(operation: Operation, shape: StepShape) -> float:
    return float(operation.measure(shape).flops[0])


def moved(operation: Operation, shape: StepShape) -> float:
    return float(operation.measure(shape).bytes[0])


def test_chosen_keys_bound_attention_and_not_the_indexer() -> None:
    architecture = load_architecture("zai-org/GLM-5-FP8")
    found = of(architecture, 8)
    attention, scores = found["latent_attention"][0], found["index_scores"][0]
    short, long, longer = (
        StepShape.of(decodes=4, keys=keys, window=architecture.window_tokens) for keys in (1000, 50_000, 100_000)
    )
    absorbed, heads = 2 * 64 / 8 * (512 + 64 + 512), 32
    assert flops(attention, short) == pytest.approx(4 * 1000 * absorbed, rel=RATE)
    assert flops(attention, long) == flops(attention, longer) == pytest.approx(4 * 2048 * absorbed, rel=RATE)
    assert attention.measure(long).seconds == attention.measure(longer).seconds
    # 32 index heads of 128 on every rank, 132 bytes a key; a token's own key is written
    assert flops(scores, longer) == pytest.approx(4 * 100_000 * 2 * heads * 128, rel=RATE)
    assert moved(scores, longer) == pytest.approx((4 * 100_000 + 4) * 132, rel=RATE)
    many, more = StepShape.of(decodes=64, keys=50_000), StepShape.of(decodes=64, keys=100_000)
    assert 1.8 < scores.measure(more).seconds / scores.measure(many).seconds < 2.0  # and a launch


def test_prefill_of_sparse_attention_is_absorbed_and_sees_the_chosen_keys() -> None:
    architecture = load_architecture("zai-org/GLM-5-FP8")
    attention = of(architecture, 8)["latent_attention"][0]
    shape = StepShape.of(chunks=1, new=4096, window=architecture.window_tokens)
    pairs = 2048 * 2049 / 2 + 2048 * 2048
    assert flops(attention, shape) == pytest.approx(pairs * 2 * 64 / 8 * (512 + 64 + 512), rel=RATE)


def test_only_layers_that_choose_keys_pay_for_scores() -> None:
    for name, layers in (("zai-org/GLM-5", 78), ("zai-org/GLM-5.2", 21), ("deepseek-ai/DeepSeek-V3.2", 61)):
        found = of(load_architecture(name), 8)
        assert sum(operation.count for operation in found["index_scores"]) == layers
    assert "index_scores" not in of(load_architecture("deepseek-ai/DeepSeek-V3"), 8)


def test_sparse_attention_bends_the_time_of_a_step_where_the_choice_is_full() -> None:
    times = {}
    for name in ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3.2"):
        architecture = load_architecture(name)
        layout = Layout(tensor_parallel=8, pipeline_stages=(len(architecture.layers),))
        engine = load_engine("vllm")
        times[name] = step_times(
            architecture,
            layout,
            DType.FP8,
            DType.BF16,
            DEVICE,
            PROFILE,
            engine,
            64,
            8192,
            RooflineLatency(DEVICE, PROFILE),
        )
    dense, sparse = times.values()
    assert (dense.window_tokens, sparse.window_tokens) == (None, 2048)
    far = [one.decode_s(8, 8 * 120_000, 8 * 2048) - one.decode_s(8, 8 * 60_000, 8 * 2048) for one in (dense, sparse)]
    assert 0 < far[1] < far[0] / 2


def test_the_delta_net_pays_for_its_state_and_not_for_the_context() -> None:
    architecture = load_architecture("Qwen/Qwen3.5-397B-A17B")
    found = of(architecture, 8, 8)
    (scan,), (attention,) = found["scan"], found["attention"]
    assert (scan.count, attention.count) == (45, 15)
    short, long = StepShape.of(decodes=16, keys=100), StepShape.of(decodes=16, keys=100_000)
    assert scan.measure(short).seconds == scan.measure(long).seconds
    state = 64 * 128 * 128 / 8
    assert flops(scan, long) == pytest.approx(16 * 7 * state, rel=RATE)
    assert moved(scan, long) == pytest.approx(16 * 2 * 4 * state, rel=RATE)


def test_values_narrower_than_keys_cost_what_they_are() -> None:
    architecture = load_architecture("XiaomiMiMo/MiMo-V2-Flash")
    found = {operation.window: operation for operation in of(architecture, 4)["attention"]}
    shape = StepShape.of(decodes=2, keys=1000, window=architecture.window_tokens)
    assert flops(found[None], shape) == pytest.approx(2 * 1000 * 2 * 64 / 4 * (192 + 128), rel=RATE)
    assert moved(found[None], shape) == pytest.approx((2 * 1000 + 2) * (192 + 128) * 2, rel=RATE)  # one KV head of 4
    assert moved(found[129], shape) == pytest.approx((2 * 129 + 2) * 2 * (192 + 128) * 2, rel=RATE)  # two of 8


def test_the_sum_for_norms_over_all_heads_is_paid_by_ranks_that_share_them() -> None:
    architecture = load_architecture("MiniMaxAI/MiniMax-M2.5")
    sums = of(architecture, 4)["all_reduce"]
    shape = StepShape.of(decodes=16, keys=100)
    assert min(moved(one, shape) for one in sums if one.count == 62) == 16 * 4 * 2  # four 16-bit elements a token
    assert "all_reduce" not in of(architecture, 1)
