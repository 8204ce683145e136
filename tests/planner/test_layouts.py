"""Layouts with experts spread and attention apart: which are tried, what they hold, how they are simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planning import CHAT, L40S, plan_of, problem_of

from planner.candidates.family import Family, Variant
from planner.candidates.layouts import kv_ranks, rank_layouts
from planner.candidates.replica import BALANCE
from planner.cost.bound import optimistic_work_s
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import Problem
from planner.simulate import FleetGroup, Workload, simulate_fleet
from specs.architecture import load_architecture, weight_bytes_per_rank
from specs.deployment import ModelChoices, PoolSpec
from specs.document import DType
from specs.errors import InputError
from specs.plan import Limits, Route

MIXTURE, LATENT, DENSE = "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-8B"
H100 = "{name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $3/h, rent: gpu}"
H200 = "{name: h200, device: h200-sxm, count: 8, gpus_per_node: 8, price: $4/h, rent: gpu}"
LONG = CHAT.replace("prompt_tokens: 500", "prompt_tokens: 2000").replace("1s", "3s")
NODE = PoolSpec(name="h100", device="h100-sxm", count=16, gpus_per_node=8)


def layouts_of(problem: Problem) -> set[tuple[int, int, int]]:
    """(tensor, attention data, expert) sizes of the families in one stage."""
    return {
        (layout.tensor_parallel, layout.attention_data_parallel, layout.expert_parallel)
        for layout in (family.layout for family in problem.families)
        if layout.pipeline_parallel == 1
    }


@pytest.mark.parametrize(("model", "ranks"), [(MIXTURE, 4), (LATENT, 1), (DENSE, 8)])
def test_ranks_that_split_a_cache(model: str, ranks: int) -> None:
    assert kv_ranks(load_architecture(model)) == ranks


@pytest.mark.parametrize(
    ("model", "tensor", "pipeline", "engine", "expected"),
    [
        (DENSE, 8, 1, "vllm", [(1, 1)]),
        (MIXTURE, 2, 1, "vllm", [(1, 1), (1, 2)]),
        (MIXTURE, 4, 1, "vllm", [(1, 1), (1, 4), (2, 8), (4, 16)]),  # one node, then two
        (MIXTURE, 4, 2, "vllm", [(1, 1), (1, 4)]),
        (MIXTURE, 8, 1, "sglang", [(1, 1), (1, 8)]),
        (MIXTURE, 4, 1, "capstan", [(1, 1)]),
        (LATENT, 1, 1, "vllm", [(1, 1), (8, 8), (16, 16)]),
    ],
)
def test_layouts_that_are_tried(
    model: str, tensor: int, pipeline: int, engine: str, expected: list[tuple[int, int]]
) -> None:
    found = rank_layouts(load_architecture(model), ModelChoices(), engine, NODE, tensor, pipeline)
    assert list(found) == expected


def test_pins_replace_the_rules() -> None:
    choices = ModelChoices(attention_data_parallel=(2, 8), expert_parallel=(4,))
    assert list(rank_layouts(load_architecture(LATENT), choices, "vllm", NODE, 1, 1)) == [(2, 4), (8, 4)]


@pytest.mark.parametrize("pin", ["attention_data_parallel", "expert_parallel"])
def test_layouts_of_experts_are_refused_for_models_without(pin: str) -> None:
    with pytest.raises(InputError, match="has no experts") as raised:
        problem_of(rest=f"choices: {{small: {{{pin}: 2}}}}")
    assert raised.value.field == f"choices.small.{pin}"


def test_experts_that_cannot_be_spread_so_are_named() -> None:
    problem = problem_of(
        models=f"{{small: {MIXTURE}}}", rest="choices: {small: {tensor_parallel: 2, expert_parallel: 3}}"
    )
    assert "experts cannot be spread over 3 of 2 ranks" in {item.detail for item in problem.dropped}


def test_a_pinned_layout_is_planned() -> None:
    rest = (
        "choices: {small: {tensor_parallel: 1, attention_data_parallel: 2, expert_parallel: 2, pipeline_parallel: 1}}"
    )
    plan = plan_of(models=f"{{small: {MIXTURE}}}", pools=(H100,), rest=rest)
    (group,) = plan.groups
    assert (group.layout.attention_data_parallel, group.layout.expert_parallel, group.layout.gpus) == (2, 2, 2)
    assert "2 attention ranks are simulated as one batch" in " ".join(plan.predictions.notes)
    assert all(check.holds for check in plan.certificate.checks)
    again = simulate_plan(plan, Path())
    assert again["classes"][0]["tpot_s"]["p90"] == pytest.approx(plan.predictions.classes[0].tpot_s["p90"], rel=1e-9)


@pytest.fixture(scope="module")
def latent() -> Problem:
    return problem_of(models=f"{{small: {LATENT}}}", pools=(H200,), traffic=LONG)


def variant_of(family: Family, sequences: int = 16, budget: int = 256) -> Variant:
    limits = Limits(max_num_seqs=sequences, max_num_batched_tokens=budget, max_model_len=family.max_model_len)
    cache = family.cache(limits)
    assert cache is not None
    return Variant(family, limits, cache)


def by_attention(problem: Problem) -> dict[int, Family]:
    return {family.layout.attention_data_parallel: family for family in problem.families}


def test_a_latent_cache_is_split_by_requests_not_by_heads(latent: Problem) -> None:
    """Tensor-parallel ranks repeat the one latent head; data-parallel ones hold requests of their own."""
    assert layouts_of(latent) == {(8, 1, 1), (8, 1, 8), (1, 8, 8)}
    family = by_attention(latent)[8]
    apart, together = variant_of(family), variant_of(by_attention(latent)[1])
    assert apart.cache.memory.kv_bytes_per_token == together.cache.memory.kv_bytes_per_token
    expected = weight_bytes_per_rank(family.architecture, DType.FP8, 1, 8, attention_data_parallel=8)
    assert apart.cache.memory.weights_bytes == expected
    experts = 58 * 256 * 3 * 7168 * 2048 * (1 + 4 / 128**2)  # bytes of all of them, with their scales
    whole = weight_bytes_per_rank(family.architecture, DType.FP8, 1)
    assert expected == pytest.approx(whole - experts + experts / 8, rel=1e-6)
    assert apart.replica.num_blocks > 4 * together.replica.num_blocks


def test_a_replica_holds_what_its_attention_ranks_hold(latent: Problem) -> None:
    variant = variant_of(by_attention(latent)[8], 16, 256)
    replica = variant.replica
    assert replica.limits.max_num_seqs == 8 * 16
    assert replica.limits.max_num_batched_tokens == 8 * 256
    assert replica.num_blocks == int(BALANCE * 8 * variant.cache.num_blocks)


def test_the_fullest_rank_is_waited_for(latent: Problem) -> None:
    """A step with one short prompt takes what a full chunk on every rank takes; decodes wait for nobody."""
    family = by_attention(latent)[8]
    shared, alone = family.times, variant_of(family, 16, 256).replica.times
    rest_s = shared.tokens_s[8 * 256] - shared.tokens_s[256]
    assert rest_s > 0
    short = (100, 1, 1, 0, 0, 0, [(100, 0)])
    assert alone.step_s(*short) == pytest.approx(shared.step_s(*short) + rest_s)
    assert alone.step_s(8, 8, 8, 8, 0, 0, []) == pytest.approx(shared.step_s(8, 8, 8, 8, 0, 0, []), rel=0.02)
    long = (512, 1, 1, 0, 0, 0, [(512, 0)])  # of which one rank computes 256 in this step, and 256 more
    assert alone.step_s(*long) == pytest.approx(shared.step_s(*long) + 2 * rest_s, rel=1e-3)
    deep = (8, 8, 8, 8, 8 * 4000, 0, [])
    assert alone.step_s(*deep) > shared.step_s(*deep)


def test_the_bound_holds_for_ranks_apart(latent: Problem) -> None:
    family = by_attention(latent)[8]
    count = 200
    load = Workload(
        ("chat",), np.zeros(count, np.int64), 0.01 * np.arange(count), np.full(count, 800), np.full(count, 50), 1e6
    )
    group = FleetGroup("only", 1, variant_of(family).replica)
    result = simulate_fleet((group,), (Route(request_class="chat", group="only", share=1.0),), load)
    assert optimistic_work_s(family.times, load.prompt_tokens, load.output_tokens) < sum(result.groups[0].busy_s)


def test_a_model_that_one_node_does_not_hold_takes_two() -> None:
    """DeepSeek-V3 in FP8 needs 671 GB and more; a node of H100 has 640."""
    problem = problem_of(models=f"{{small: {LATENT}}}", pools=(H100,), traffic=LONG)
    wide = [family for family in problem.families if family.layout.attention_data_parallel == 16]
    assert [family.layout.expert_parallel for family in wide] == [16]
    assert wide[0].gpus == 16
    assert wide[0].most_replicas == 1


def test_ranks_stay_inside_a_node_that_holds_the_model(latent: Problem) -> None:
    assert all(family.gpus <= 8 for family in latent.families)


def test_plain_models_are_laid_out_as_before() -> None:
    assert layouts_of(problem_of(pools=(L40S,))) == {(1, 1, 1), (2, 1, 1), (4, 1, 1)}
