"""Which configurations are enumerated, and the reason given for each that is not."""

from __future__ import annotations

from typing import Any

import pytest
from planning import CHAT, H100, L40S, problem_of, spec_of, text_of

from planner.candidates.enumerate import SEQUENCE_LIMITS, sequence_limits
from planner.problem import Problem, pose
from specs.catalog import load_engine
from specs.deployment import ModelChoices, parse_deployment
from specs.errors import InputError
from specs.plan import Discarded


def dropped(problem: Problem, reason: str) -> list[Discarded]:
    return [item for item in problem.dropped if item.reason == reason]


def layouts(problem: Problem) -> set[tuple[str, int, int]]:
    return {(f.pool.name, f.layout.tensor_parallel, f.layout.pipeline_parallel) for f in problem.families}


def test_heads_that_do_not_divide_are_named() -> None:
    found = dropped(problem_of(rest="choices: {small: {tensor_parallel: [1, 3]}}"), "heads")
    assert {item.configuration.tensor_parallel for item in found} == {3}
    assert "16" in found[0].detail  # Qwen3-0.6B has 16 attention heads
    assert "3" in found[0].detail


def test_memory_comes_with_its_figures_and_a_margin() -> None:
    problem = problem_of(models="{small: meta-llama/Llama-3.1-70B}", rest="choices: {small: {pipeline_parallel: 1}}")
    found = {item.configuration.tensor_parallel: item for item in dropped(problem, "memory")}
    assert "weights take 141.1 GB of 43.5 GB a device" in found[1].detail
    assert found[1].margin is not None
    assert found[2].margin is not None
    assert found[1].margin > found[2].margin > 0
    assert found[1].margin > 141.1 / 43.5 - 1
    assert layouts(problem) == {("l40s", 4, 1)}


def test_types_that_the_device_has_no_kernels_for() -> None:
    pool = "{name: a100, device: a100-sxm, count: 8}"
    models = "{small: {architecture: Qwen/Qwen3-0.6B, kv_cache: [bf16, fp4], weights: [bf16, fp8]}}"
    problem = problem_of(models=models, pools=(pool,), rest="")
    details = {item.detail for item in dropped(problem, "dtype")}
    assert "a100-sxm has no kernels for a fp4 KV cache" in details
    assert {f.kv_dtype.value for f in problem.families} == {"bf16"}


def test_a_node_holds_the_ranks_of_a_stage() -> None:
    problem = problem_of(rest="choices: {small: {tensor_parallel: [4, 8]}}")
    (found,) = {item.detail for item in dropped(problem, "node") if item.configuration.pipeline_parallel == 1}
    assert found == "TP 8 does not fit a node of 4 l40s"


def test_tensor_parallelism_stays_inside_the_fast_domain_whatever_the_pool_calls_a_node() -> None:
    wide = "{name: wide, device: h100-sxm, count: 16, gpus_per_node: 16}"
    (found,) = {item.detail for item in dropped(problem_of(pools=(wide,), rest=""), "node")}
    assert found == "TP 16 leaves the fast domain of 8 h100-sxm"


def test_stages_are_joined_by_the_network_where_the_pool_has_small_nodes() -> None:
    """The pool says what a node is, not the datasheet; and the declared network is what joins nodes."""

    def step_s(gpus_per_node: int, network: str = "") -> float:
        pool = f"{{name: l40s, device: l40s, count: 8, gpus_per_node: {gpus_per_node}}}"
        rest = f"choices: {{small: {{tensor_parallel: 1, pipeline_parallel: 2}}}}\n{network}"
        text = text_of(pools=(pool,), rest=rest)
        if network:
            text = text.replace("hardware:\n", f"hardware:\n  network: {network}\n").replace(f"\n{network}\n", "\n")
        (family,) = pose(parse_deployment(text).spec, ".").families
        return family.times.tokens_s[64]

    inside, between = step_s(2), step_s(1)
    assert between > inside + 5e-6  # the network's latency, and what it carries slower than PCIe
    factor = load_engine("vllm").kernels.collective
    assert step_s(1, "{latency: 1ms}") == pytest.approx(between + factor * (1e-3 - 5e-6), rel=1e-6)
    assert step_s(2, "{latency: 1ms}") == inside


def test_stages_across_nodes_fill_whole_nodes_with_whole_stages() -> None:
    six = "{name: six, device: l40s, count: 12, gpus_per_node: 6}"
    pins = "choices: {small: {tensor_parallel: 4, pipeline_parallel: [2, 3]}}"
    problem = problem_of(pools=(six,), rest=pins)
    assert {item.detail for item in dropped(problem, "node")} == {
        "8 devices do not fill whole nodes of 6",
        "stages of TP 4 do not fill a node of 6 l40s",  # 12 devices, but the second stage would be torn
    }
    assert problem.families == ()


def test_inventory_is_what_the_pool_holds() -> None:
    problem = problem_of(pools=("{name: l40s, device: l40s, count: 2, gpus_per_node: 4}",), rest="")
    found = dropped(problem, "inventory")
    assert found
    assert all(i.configuration.tensor_parallel * i.configuration.pipeline_parallel > 2 for i in found)
    assert "needs 4 devices, the pool has 2" in {item.detail.removeprefix("one replica ") for item in found}


def test_more_stages_than_layers() -> None:
    problem = problem_of(
        pools=("{name: l40s, device: l40s, count: 64}",), rest="choices: {small: {pipeline_parallel: [1, 32]}}"
    )
    assert dropped(problem, "layers")[0].detail == "32 stages for 28 layers"


def test_over_a_fast_link_stages_are_dropped_where_tensor_parallelism_fits() -> None:
    problem = problem_of(pools=(L40S, H100))
    assert {where for where in layouts(problem) if where[0] == "h100" and where[2] > 1} == set()
    assert {where for where in layouts(problem) if where[0] == "l40s" and where[2] > 1}  # PCIe: they stay
    details = {i.configuration.pool: i.detail for i in dropped(problem, "pipeline")}
    assert details["h100"].startswith(("tensor parallelism over the same devices", "a replica inside one node fits"))
    assert details["l40s"].startswith("a replica inside one node fits")
    pinned = problem_of(pools=(H100,), rest="choices: {small: {pipeline_parallel: 2}}")
    assert {where[2] for where in layouts(pinned)} == {2}


def test_pins_leave_only_what_they_allow() -> None:
    pins = "choices: {small: {tensor_parallel: [2], pool: h100}}"
    problem = problem_of(pools=(L40S, H100), rest=pins)
    assert {where[:2] for where in layouts(problem)} == {("h100", 2)}
    assert not problem.dropped or {item.configuration.pool for item in problem.dropped} == {"h100"}


def test_every_configuration_is_kept_or_dropped_once() -> None:
    models = "{small: {architecture: Qwen/Qwen3-0.6B, weights: [bf16, fp8], kv_cache: [bf16, fp8]}}"
    problem = problem_of(models=models, pools=(L40S, H100))
    every = [f.configuration() for f in problem.families] + [item.configuration for item in problem.dropped]
    keys = [item.model_dump_json() for item in every]
    # TP 1, 2, 4 on nodes of 4 and 1 to 8 on nodes of 8; PP 1, 2, 4; two weight types, two KV types
    assert len(keys) == len(set(keys)) == (3 + 4) * 3 * 4


@pytest.mark.parametrize(
    ("model", "traffic", "field", "expected"),
    [
        ({"max_context": "512"}, CHAT, "models.small.max_context", "at least 560"),
        ({"max_context": "64Ki"}, CHAT, "models.small.max_context", "at most 40960"),
        ({}, CHAT.replace("500", "50000"), "models.small.max_context", "requests of at most 40960"),
    ],
)
def test_requests_longer_than_the_context_are_an_error(
    model: dict[str, str], traffic: str, field: str, expected: str
) -> None:
    extra = "".join(f", {key}: {value}" for key, value in model.items())
    with pytest.raises(InputError) as caught:
        problem_of(models=f"{{small: {{architecture: Qwen/Qwen3-0.6B{extra}}}}}", traffic=traffic)
    assert (caught.value.field, caught.value.expected) == (field, expected)


def test_without_a_declared_context_the_longest_request_counts() -> None:
    assert {f.max_model_len for f in problem_of().families} == {1024}
    assert {f.max_model_len for f in problem_of(traffic=CHAT.replace("500", "1000")).families} == {2048}


def test_a_model_without_traffic_is_an_error() -> None:
    spec = spec_of()
    with pytest.raises(InputError, match="no request class uses this model"):
        pose(spec.model_copy(update={"models": {**spec.models, "idle": spec.models["small"]}}), ".")


@pytest.mark.parametrize(
    ("pins", "limits"),
    [
        ({}, SEQUENCE_LIMITS),
        ({"max_num_seqs": (7, 9)}, (7, 9)),
        ({"max_num_batched_tokens": (128,)}, (128, 64, 32)),
        ({"max_num_batched_tokens": (16, 8)}, (16,)),
    ],
)
def test_sequence_limits_that_a_pinned_budget_reaches(pins: dict[str, Any], limits: tuple[int, ...]) -> None:
    assert sequence_limits(ModelChoices(**pins)) == limits


def test_pins_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(InputError, match=r"128 tokens a step do not reach max_num_seqs, 256"):
        problem_of(rest="choices: {small: {max_num_seqs: 256, max_num_batched_tokens: 128}}")


@pytest.mark.parametrize(
    ("pool", "most"),
    [
        ("{name: p, device: l40s, count: 6, gpus_per_node: 4}", {1: 6, 2: 3, 4: 1}),
        ("{name: p, device: l40s, count: 7, gpus_per_node: 4}", {1: 7, 2: 3, 4: 1}),
        ("{name: p, device: l40s, count: 8, gpus_per_node: 4, price: $1/h}", {1: 8, 2: 4, 4: 2}),
    ],
)
def test_how_many_replicas_a_pool_holds(pool: str, most: dict[int, int]) -> None:
    problem = problem_of(pools=(pool,), rest="")
    found = {f.gpus: f.most_replicas for f in problem.families if f.layout.pipeline_parallel == 1}
    assert found == most
