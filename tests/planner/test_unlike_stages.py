"""Stages on unlike machines: their step times, memory, and where the layers are cut."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from planner.candidates.layer_cuts import LayerCuts
from planner.cost.memory import memory_budget, num_blocks
from planner.cost.stages import split_unlike
from planner.cost.step import step_times
from planner.cost.step_times import StepTimes
from planner.cost.unlike_stages import StageDevice, parts, stage_operations, unlike_step_times
from planner.stage_devices import stage_devices
from specs.architecture import load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.deployment import HardwareSpec, LinkSpec, NetworkSpec, PoolSpec
from specs.document import DType
from specs.plan import Layout, Limits

A100, L40S = load_device("a100-pcie"), load_device("l40s")
OLD, NEW = StageDevice(A100, load_profile("a100-pcie")), StageDevice(L40S, load_profile("l40s"))
LLAMA = load_architecture("meta-llama/Llama-3.1-70B")
ENGINE = load_engine("vllm")
LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=8192)


def times_of(layout: Layout, stages: tuple[StageDevice, ...], architecture=LLAMA) -> StepTimes:  # type: ignore[no-untyped-def]
    return unlike_step_times(architecture, layout, DType.BF16, DType.BF16, stages, ENGINE, 64, 2048)


def test_split_unlike_is_the_best_of_all_splits() -> None:
    random = np.random.default_rng(3)
    fitting = 0
    for _ in range(150):
        layers, stages = int(random.integers(2, 8)), int(random.integers(1, 4))
        costs = [random.integers(1, 9, (layers + 1, layers + 1)).astype(float) for _ in range(stages)]
        for cost in costs:
            cost[random.random(cost.shape) < 0.3] = np.inf
        every = {}
        for ends in itertools.combinations(range(1, layers), stages - 1):
            bounds = [0, *ends, layers]
            each = [cost[first, end] for cost, first, end in zip(costs, bounds, bounds[1:], strict=False)]
            if np.isfinite(each).all():
                every[tuple(np.diff(bounds).tolist())] = (max(each), sum(each))
        found = split_unlike(costs)
        assert (found is None) == (not every)
        if found is not None:
            assert every[found] == min(every.values())
            fitting += 1
    assert fitting > 50


def test_two_pools_of_one_device_are_as_fast_as_one_pool() -> None:
    layout = Layout(tensor_parallel=2, pipeline_stages=(41, 39))
    alone = step_times(LLAMA, layout, DType.BF16, DType.BF16, A100, OLD.profile, ENGINE, 64, 2048)
    same_node = A100.gpus_per_node >= layout.gpus
    both = times_of(layout, (replace(OLD, onward=(A100,), onward_in_node=same_node), OLD))
    assert both.lanes == alone.lanes == 2
    np.testing.assert_allclose(both.tokens_s, alone.tokens_s, rtol=1e-12)
    np.testing.assert_allclose(both.sampled_s, alone.sampled_s, rtol=1e-12)
    arguments = (300, 40, 40, 39, 39 * 900, 0, [(261, 512)])
    assert both.step_s(*arguments) == pytest.approx(alone.step_s(*arguments))
    assert sum(stage.step_s(*arguments) for stage in both.stages) == pytest.approx(both.step_s(*arguments))


def test_each_stage_takes_the_time_of_its_own_device() -> None:
    layout = Layout(tensor_parallel=2, pipeline_stages=(40, 40))
    old, new = times_of(layout, (OLD, OLD)), times_of(layout, (NEW, NEW))
    mixed = times_of(layout, (OLD, NEW))
    assert mixed.stages[0].tokens_s == old.stages[0].tokens_s
    assert mixed.stages[1].tokens_s == new.stages[1].tokens_s
    assert mixed.stages[1].tokens_s != old.stages[1].tokens_s
    assert mixed.stages[0].sampled_s[1:] == (0.0,) * 64  # rows are sampled in the last stage
    assert mixed.stages[1].sampled_s[64] > 0


def test_a_margin_makes_every_stage_longer() -> None:
    mixed = times_of(Layout(tensor_parallel=2, pipeline_stages=(50, 30)), (OLD, NEW))
    longer = mixed.scaled(1.25)
    arguments = (300, 40, 40, 39, 39 * 900, 0, [(261, 512)])
    for stage, before in zip(longer.stages, mixed.stages, strict=True):
        assert stage.step_s(*arguments) == pytest.approx(1.25 * before.step_s(*arguments))
    assert sum(stage.step_s(*arguments) for stage in longer.stages) == pytest.approx(longer.step_s(*arguments))


def test_layers_of_windows_and_of_experts_are_each_in_one_stage() -> None:
    """gpt-oss: every other layer has a window, all have experts; the parts of a cut add up to the whole."""
    oss = load_architecture("openai/gpt-oss-20b")
    layers = len(oss.layers)
    layout = Layout(tensor_parallel=1, pipeline_stages=(5, layers - 5))
    found = times_of(layout, (OLD, OLD), oss)
    whole = step_times(
        oss, Layout(pipeline_stages=(layers,)), DType.BF16, DType.BF16, A100, OLD.profile, ENGINE, 64, 2048
    )
    arguments = (79, 64, 64, 63, 63 * 3000, 63 * 128, [(16, 300)])
    assert found.step_s(*arguments) == pytest.approx(whole.step_s(*arguments), rel=1e-6)
    assert len({stage.decode_window_token_s for stage in found.stages}) == 2


def test_hidden_states_cross_at_the_narrower_end_of_the_declared_link() -> None:
    pools = (
        PoolSpec(name="old", device="a100-pcie", count=4, gpus_per_node=2),
        PoolSpec(name="new", device="l40s", count=2, gpus_per_node=2),
    )
    link = LinkSpec(between=("new", "old"), bandwidth_bytes_per_s=1e9, latency_s=1e-3)
    hardware = HardwareSpec(pools=pools, network=NetworkSpec(bandwidth_bytes_per_s=12.5e9, links=(link,)))
    facts = {"a100-pcie": A100, "l40s": L40S}, {"a100-pcie": OLD.profile, "l40s": NEW.profile}
    stages = stage_devices((pools[0], pools[0], pools[0], pools[1]), 1, hardware, *facts)
    assert [stage.onward_in_node for stage in stages] == [True, False, False, False]
    assert stages[3].onward == ()
    layout = Layout(pipeline_stages=(20, 20, 20, 20))
    seconds = []
    for stage, part in zip(stages, parts(layout), strict=True):
        every = stage_operations(LLAMA, layout, DType.BF16, DType.BF16, stage, part)
        crossing = [operation for operation in every if operation.name == "hand_over"]
        seconds.append([float(operation.measure(tokens(1000)).seconds[0]) for operation in crossing])
    assert [len(item) for item in seconds] == [1, 1, 1, 0]
    message = 1000 * LLAMA.hidden_size * 2
    assert seconds[2][0] == pytest.approx(1e-3 + message / 1e9, rel=0.01)
    assert seconds[1][0] == pytest.approx(message / 12.5e9, rel=0.1)


def tokens(count: int):  # type: ignore[no-untyped-def]
    from planner.cost.step_work import StepShape

    return StepShape.of(chunks=1, new=count)


def test_the_cache_is_that_of_the_stage_that_holds_the_fewest_tokens() -> None:
    def blocks(devices: tuple[object, ...], stages: tuple[int, ...]) -> int:
        layout = Layout(tensor_parallel=2, pipeline_stages=stages)
        budget = memory_budget(LLAMA, layout, DType.BF16, DType.BF16, A100, ENGINE, LIMITS, devices)  # type: ignore[arg-type]
        return num_blocks(budget, ENGINE.block_size_tokens)

    assert blocks((A100, A100), (40, 40)) == blocks((), (40, 40)) > 0
    assert blocks((A100, L40S), (40, 40)) == blocks((L40S, L40S), (40, 40))
    by_cut = {first: blocks((A100, L40S), (first, 80 - first)) for first in range(30, 66)}
    best = max(by_cut, key=lambda first: by_cut[first])
    assert by_cut[best - 1] < by_cut[best] > by_cut[best + 1]  # the L40S is full below it, the A100 above it
    cuts = LayerCuts(
        LLAMA, Layout(tensor_parallel=2, pipeline_stages=(40, 40)), DType.BF16, DType.BF16, (OLD, NEW), ENGINE, LIMITS
    )
    assert max(by_cut[first] for first, _ in cuts.splits()) >= 0.95 * by_cut[best]  # one layer off at most


def test_layers_are_cut_so_that_the_slowest_stage_is_fast_and_every_stage_fits() -> None:
    layout = Layout(tensor_parallel=2, pipeline_stages=(40, 40))
    cuts = LayerCuts(LLAMA, layout, DType.BF16, DType.BF16, (OLD, NEW), ENGINE, LIMITS)
    decode, prefill, *between = cuts.splits()  # the cut for memory is within a layer of that for decode steps
    assert decode[0] > prefill[0]  # HBM sets the one, where an A100 is far ahead; tensor cores the other
    assert all(decode[0] > first > prefill[0] for first, _ in between)

    def slowest(first: int, tokens_in_step: int) -> float:
        times = times_of(layout.model_copy(update={"pipeline_stages": (first, 80 - first)}), (OLD, NEW))
        return max(stage.tokens_s[tokens_in_step] for stage in times.stages)

    assert slowest(decode[0], 64) <= 1.02 * min(slowest(first, 64) for first in range(decode[0] - 4, decode[0] + 5))
    assert slowest(prefill[0], 2048) <= 1.02 * min(slowest(prefill[0] + by, 2048) for by in (-3, -2, -1, 1, 2, 3))
    longer = replace(cuts, least=LIMITS.model_copy(update={"max_model_len": 100_000}))
    of_old, of_new = longer.tokens()
    assert min(min(of_old[0, first], of_new[first, 80]) for first, _ in longer.splits()) >= 100_000
    assert replace(cuts, least=LIMITS.model_copy(update={"max_model_len": 2_000_000})).splits() == []


def test_cuts_between_those_for_decode_and_for_prompt_steps_are_tried() -> None:
    """Of two stages, two or three layers from one to the next; of more, balances of mixed steps."""
    two = LayerCuts(
        LLAMA, Layout(tensor_parallel=2, pipeline_stages=(40, 40)), DType.BF16, DType.BF16, (OLD, NEW), ENGINE, LIMITS
    )
    firsts = sorted(first for first, _ in two.splits())
    steps = np.diff(firsts)
    assert 4 <= len(firsts) <= 8
    assert steps.min() >= 2
    assert steps.max() <= 3
    four = replace(two, layout=Layout(pipeline_stages=(20,) * 4), stages=(OLD, OLD, NEW, NEW))
    decode, prefill, *others = four.splits()
    assert any(sum(prefill[:2]) < sum(split[:2]) < sum(decode[:2]) for split in others)
    assert len(others) <= 6
