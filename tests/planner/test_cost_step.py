"""Whole steps: published times, physical limits, monotonicity, layouts."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import pytest

from planner.cost.stages import split_stages
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes, chunk_pairs
from planner.graph import as_networkx, launches
from specs.architecture import Architecture, load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.errors import InputError
from specs.plan import Layout

EIGHT, SEVENTY = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"


def times_of(
    model: str,
    device: str = "h100",
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    weights: DType = DType.BF16,
    kv: DType = DType.BF16,
    tokens: int = 2048,
) -> StepTimes:
    architecture = load_architecture(model)
    layout = Layout(tensor_parallel=tensor_parallel, pipeline_stages=split_stages(architecture, pipeline_parallel))
    facts, profile, engine = load_device(device), load_profile(device), load_engine("vllm")
    return step_times(architecture, layout, weights, kv, facts, profile, engine, 256, tokens)


def decode_s(times: StepTimes, batch: int, context: int) -> float:
    seen = min(context, times.window_tokens or context)
    return times.step_s(batch, batch, batch, batch, batch * context, batch * seen, [])


def prefill_s(times: StepTimes, tokens: int) -> float:
    return times.step_s(tokens, 1, 1, 0, 0, 0, [(tokens, 0)])


@pytest.mark.parametrize(
    ("model", "device", "ranks", "weights", "batch", "context", "published_ms"),
    [
        # closed loop at 4 or 8 requests, TPOT; published with NVIDIA aiconfigurator-core 0.12.0 (Apache-2.0).
        # They hold a share of prefills (1 to 5 %) that a pure decode step does not.
        (SEVENTY, "h100", 2, DType.FP8, 4, 1536, 17.97),
        (SEVENTY, "h100", 4, DType.FP8, 4, 1536, 11.78),
        (SEVENTY, "h100", 8, DType.FP8, 4, 1536, 9.20),
        ("Qwen/Qwen3-32B", "h100", 2, DType.BF16, 8, 1536, 15.90),
        ("Qwen/Qwen3-32B", "h100", 4, DType.BF16, 8, 1536, 10.60),
        ("Qwen/Qwen3-32B", "h100", 8, DType.BF16, 8, 1536, 7.96),
        ("openai/gpt-oss-120b", "h200", 1, DType.FP4, 4, 1536, 6.33),
        ("openai/gpt-oss-120b", "h200", 4, DType.FP4, 4, 1536, 3.93),
    ],
)
def test_decode_steps_near_published_ones(
    model: str, device: str, ranks: int, weights: DType, batch: int, context: int, published_ms: float
) -> None:
    times = times_of(model, device, ranks, weights=weights)
    assert decode_s(times, batch, context) * 1e3 == pytest.approx(published_ms, rel=0.2)


def test_an_8b_model_alone_on_an_h100() -> None:
    """5.1 ms with CUDA graphs is the best figure published; a full serving engine takes up to half as much again."""
    assert 5.1e-3 < decode_s(times_of(EIGHT), 1, 512) < 1.5 * 5.1e-3


def test_an_8b_model_at_batch_256_is_1_3_to_1_6_times_its_reading_time() -> None:
    reading = (2 * 7.5e9 + 256 * 1024 * 131072) / 3.35e12
    assert 1.25 < decode_s(times_of(EIGHT), 256, 1024) / reading < 1.6


@pytest.mark.parametrize("device", ["a100", "h100", "h200", "l40s", "b200", "mi300x"])
def test_no_step_beats_physics(device: str) -> None:
    facts = load_device(device)
    times = times_of(EIGHT, device)
    matrices = 8_030_261_248 - 128256 * 4096  # all but the embedding, which is looked up
    for batch, context in ((1, 100), (64, 2000), (256, 500)):
        read = 2 * matrices + batch * context * 131072
        assert decode_s(times, batch, context) > max(read / facts.hbm_bytes_per_s, 2 * matrices * batch / peak(device))
    inside = matrices - 128256 * 4096
    operations = 2 * inside * 2048 + 4 * 32 * 4096 * chunk_pairs(2048, 0)
    assert prefill_s(times, 2048) > operations / peak(device)


def peak(device: str) -> float:
    return load_device(device).flops[DType.BF16]


@pytest.mark.parametrize("model", [EIGHT, "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V3", "Qwen/Qwen3-30B-A3B"])
def test_more_work_never_takes_less_time(model: str) -> None:
    architecture = load_architecture(model)
    dtype = DType.FP8 if model.startswith("deepseek") else DType.BF16
    for ranks in (1, 8):
        if architecture.tensor_parallel_obstacle(ranks, 1):
            continue
        times = times_of(model, "h200", ranks, weights=dtype)
        for table in (times.tokens_s, times.sampled_s):
            assert table[0] == 0.0
            assert all(later >= earlier for earlier, later in pairwise(table))
        assert min(times.decode_context_token_s, times.prefill_pair_s, times.sequence_s) > 0
        for batch in (1, 7, 64, 256):
            decodes = [decode_s(times, batch, context) for context in (1, 100, 129, 1000, 1025, 5000, 40_000)]
            assert decodes == sorted(decodes)


def test_table_lengths_follow_the_limits() -> None:
    times = times_of(EIGHT, tokens=1000)
    assert (len(times.tokens_s), len(times.sampled_s)) == (1001, 257)


def test_windowed_layers_have_their_own_slope() -> None:
    times = times_of("openai/gpt-oss-20b", "h100", weights=DType.FP4)
    assert times.window_tokens == 128
    # every second of 24 layers is windowed: a context beyond the window costs it nothing more
    beyond = [times.decode_s(64, 64 * context, 64 * 128) for context in (4096, 8192, 16384)]
    assert beyond[2] - beyond[1] == pytest.approx(2 * (beyond[1] - beyond[0]), rel=0.15)
    assert times.decode_s(64, 64 * 8192, 64 * 128) < 0.8 * times.decode_s(64, 64 * 8192, 64 * 8192)
    plain = times_of(EIGHT)
    assert plain.window_tokens is None
    assert plain.decode_window_token_s == plain.prefill_window_pair_s == 0.0


def test_more_ranks_read_less_each() -> None:
    steps = [decode_s(times_of(SEVENTY, "h200", ranks), 16, 1000) for ranks in (2, 4, 8)]
    assert steps == sorted(steps, reverse=True)
    two, eight = (times_of(SEVENTY, "h200", ranks).decode_s(64, 64 * 16_384, 0) for ranks in (2, 8))
    assert eight == pytest.approx(two / 4, rel=0.1)


def test_tensor_parallelism_over_pcie_pays_for_prefill() -> None:
    """L40S: ranks share the arithmetic, but their all-reduces over PCIe cost more than that saves."""
    assert prefill_s(times_of(SEVENTY, "l40s", 4, weights=DType.FP8), 2048) > prefill_s(
        times_of(SEVENTY, "l40s", 2, weights=DType.FP8), 2048
    )
    assert prefill_s(times_of(SEVENTY, "h100", 4, weights=DType.FP8), 2048) < prefill_s(
        times_of(SEVENTY, "h100", 2, weights=DType.FP8), 2048
    )


def test_stages_add_hand_overs_and_lanes() -> None:
    whole, halves = times_of(EIGHT), times_of(EIGHT, pipeline_parallel=2)
    assert (whole.lanes, halves.lanes) == (1, 2)
    message = 4096 * 2 / load_device("h100").link_bytes_per_s
    factor = load_engine("vllm").kernels.collective
    assert halves.tokens_s[1] - whole.tokens_s[1] == pytest.approx(factor * (10e-6 + message))


def test_layouts_and_types_that_do_not_fit_are_refused_by_name() -> None:
    architecture = load_architecture("Qwen/Qwen3-30B-A3B")
    facts, profile, engine = load_device("h100"), load_profile("h100"), load_engine("vllm")

    def attempt(layout: Layout, weights: DType = DType.BF16, kv: DType = DType.BF16) -> None:
        step_times(architecture, layout, weights, kv, facts, profile, engine, 8, 8)

    with pytest.raises(InputError, match="spread over 4 of 2 ranks"):
        attempt(Layout(tensor_parallel=2, pipeline_stages=(48,), expert_parallel=4))
    with pytest.raises(InputError, match="has 48"):
        attempt(Layout(pipeline_stages=(47,)))
    with pytest.raises(InputError, match=r"tensor_parallel 3: .* heads"):
        attempt(Layout(tensor_parallel=3, pipeline_stages=(48,)))
    with pytest.raises(InputError, match="does not take fp32 weights"):
        attempt(Layout(pipeline_stages=(48,)), weights=DType.FP32)
    with pytest.raises(InputError, match="KV cache"):
        attempt(Layout(pipeline_stages=(48,)), kv=DType.INT4)


def test_a_call_takes_milliseconds() -> None:
    """20 ms of CPU time (benchmarks/step_speed.py); five times that is left for a busy machine."""
    times_of(SEVENTY, tensor_parallel=4, tokens=16384)
    best = min(_seconds() for _ in range(5))
    assert best < 0.100


def _seconds() -> float:
    begin = time.process_time()
    times_of(SEVENTY, tensor_parallel=4, tokens=16384)
    return time.process_time() - begin


def test_stages_are_even_for_equal_layers_and_spare_the_last() -> None:
    architecture = load_architecture(SEVENTY)
    assert split_stages(architecture, 1) == (80,)
    assert split_stages(architecture, 4) == (20, 20, 20, 20)
    assert split_stages(architecture, 3) == (27, 27, 26)
    assert split_stages(architecture, 80) == (1,) * 80
    with pytest.raises(InputError, match="81 stages"):
        split_stages(architecture, 81)


def test_unequal_layers_are_split_as_well_as_brute_force() -> None:
    """Nemotron-H: attention, Mamba and MLP layers of very different weight."""
    architecture = load_architecture("nvidia/Nemotron-H-56B-Base-8K")
    weights = [layer.parameters()[1] for layer in architecture.layers]
    best = min(max(sum(weights[:cut]), sum(weights[cut:])) for cut in range(1, len(weights)))
    first, second = split_stages(architecture, 2)
    assert first + second == len(weights)
    assert max(sum(weights[:first]), sum(weights[first:])) <= 1.05 * best


def test_launches_of_a_dense_and_a_sparse_layer() -> None:
    dense: Architecture = load_architecture(EIGHT)
    kinds = [launch.kind for launch in launches(dense.layers[0])]
    assert kinds.count("gemm") == 4  # QKV, output, gate and up, down
    assert kinds.count("attention") == 1
    assert kinds.count("all_reduce") == 2
    sparse = launches(load_architecture("Qwen/Qwen3-30B-A3B").layers[0])
    experts = next(launch for launch in sparse if launch.kind == "experts")
    assert [getattr(operator, "name", "experts") for operator in experts.operators] == ["top_k", "experts"]
    operators = [operator for launch in sparse for operator in launch.operators]
    assert operators == list(load_architecture("Qwen/Qwen3-30B-A3B").layers[0].operators())


def test_the_graph_view_is_acyclic_and_complete() -> None:
    import networkx

    layer = load_architecture(EIGHT).layers[0]
    graph = as_networkx(layer)
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.number_of_nodes() == len(launches(layer))
    assert [edge for edge in graph.edges(data="residual") if edge[2]] == [(0, 6, True)]


def test_cost_imports_nothing_heavy() -> None:
    code = (
        "import sys, planner.cost.step, planner.cost.memory, planner.cost.bound;"
        "print({'torch', 'pyarrow', 'pandas', 'scipy', 'networkx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_step_takes_as_long_whatever_larger_steps_are_allowed() -> None:
    pinned, free = (times_of(EIGHT, weights=DType.FP8, tokens=tokens) for tokens in (2368, 16384))
    assert pinned.tokens_s == free.tokens_s[:2369]
    assert all(prefill_s(pinned, tokens) == prefill_s(free, tokens) for tokens in (17, 700, 2300, 2368))
    assert decode_s(pinned, 200, 3000) == decode_s(free, 200, 3000)
