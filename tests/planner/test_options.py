"""What replicas do beside their layout: prefixes, the host tier, speculation, priorities, several engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planning import CHAT, H100, L40S, plan_of, problem_of, spec_of, text_of

import specs
from planner.candidates.family import Family, Variant
from planner.candidates.host_tier import HOST_SHARE
from planner.candidates.options import NEUTRAL, Options
from planner.candidates.prefix_hits import most_cached
from planner.candidates.speculative import draft_lengths
from planner.cost.bound import least_steps, optimistic_work_s
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import Problem, pose
from planner.simulate import FleetGroup, Workload, simulate_fleet
from specs.deployment import SpeculativeSpec, load_deployment, parse_deployment
from specs.errors import InputError
from specs.plan import Discarded, Limits, Plan, Route, Speculation
from specs.service import accepted_tokens
from specs.traffic.prefixes import Chains

EIGHT = "{small: meta-llama/Llama-3.1-8B}"
SHARED = """  - name: chat
    model: small
    arrivals: 12/s
    prompt_tokens: 1500
    output_tokens: 40
    shared_prefix: {tokens: 1280, groups: 4}
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
"""
TIGHT = CHAT.replace("4/s", "1/s").replace("50ms", "24ms")


def speculating(acceptance: str, more: str = "method: ngram") -> str:
    return (
        f"{{small: {{architecture: Qwen/Qwen3-8B, speculative: {{{more}, acceptance: {acceptance}, max_draft: 3}}}}}}"
    )


def requests(prompts: list[int], outputs: list[int], gap_s: float = 1e-3) -> Workload:
    count = len(prompts)
    return Workload(
        ("chat",),
        np.zeros(count, np.int64),
        gap_s * np.arange(count),
        np.array(prompts),
        np.array(outputs),
        window_s=1e6,  # so that every step counts as busy time
    )


def busy_s(variant: Variant, workload: Workload) -> float:
    group = FleetGroup("only", 1, variant.replica)
    (load,) = simulate_fleet((group,), (Route(request_class="chat", group="only", share=1.0),), workload).groups
    return sum(load.busy_s)


def variant_of(family: Family, sequences: int = 32, budget: int = 512) -> Variant:
    limits = Limits(max_num_seqs=sequences, max_num_batched_tokens=budget, max_model_len=family.max_model_len)
    cache = family.cache(limits)
    assert cache is not None
    return Variant(family, limits, cache)


# ------------------------------------------------------------------------------------------------------------ keys


def test_the_key_of_a_family_names_what_is_not_neutral() -> None:
    family = problem_of().families[0]
    drafts = Speculation(draft_tokens=2, acceptance=0.5)
    both = family.with_options(Options(prefix_caching=True, speculation=drafts, order="priority"))
    assert both.key == f"{family.key}/prefixes/drafts-2/priority"
    assert both.with_options(NEUTRAL).key == family.key
    assert both.times is family.times
    assert (both.configuration().draft_tokens, both.configuration().order) == (2, "priority")
    assert family.configuration().model_dump(exclude_defaults=True).keys() <= {
        "model", "pool", "device", "engine", "tensor_parallel", "pipeline_parallel", "weights_dtype", "kv_dtype",
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- prefix caching


def test_most_cached_by_hand() -> None:
    """Units of 16 tokens: the second prompt finds the 32 shared ones, the third its whole but for one token."""
    workload = requests([64, 50, 64], [1, 1, 1])
    chains = Chains(np.zeros(3, np.int64), np.full(3, 32), np.array([0, 1, 0]), workload.prompt_tokens)
    shared = replace(workload, prefixes=chains.units(16))
    assert most_cached(shared).tolist() == [0, 32, 63]
    assert most_cached(workload).tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def shared() -> Problem:
    return problem_of(models=EIGHT, traffic=SHARED, pools=(H100,), rest="choices: {small: {tensor_parallel: 1}}")


def test_no_cache_saves_more_than_the_bound_says(shared: Problem) -> None:
    family = next(item for item in shared.families if item.layout.pipeline_parallel == 1)
    assert family.options.prefix_caching
    some = shared.workload.select(np.arange(len(shared.workload)) < 300)
    load = replace(some, window_s=1e6)
    cached = optimistic_work_s(family.times, load.prompt_tokens, load.output_tokens, cached_tokens=most_cached(load))
    plain = optimistic_work_s(family.times, load.prompt_tokens, load.output_tokens)
    assert cached < busy_s(variant_of(family), load)
    assert cached < 0.5 * plain, "most of the prompts is shared"


def test_shared_prompts_make_a_plan_cheaper() -> None:
    with_cache, without = (
        plan_of(models=EIGHT, traffic=SHARED, rest=f"choices: {{small: {{prefix_caching: {flag}}}}}")
        for flag in ("true", "false")
    )
    assert with_cache.certificate.value < without.certificate.value
    assert with_cache.certificate.bound <= with_cache.certificate.value
    (group,) = with_cache.groups
    assert group.cache.prefix_caching
    assert all(prediction.utilisation <= 1 for prediction in with_cache.predictions.groups)


def test_traffic_that_shares_nothing_is_planned_as_before() -> None:
    assert all(family.options == NEUTRAL for family in problem_of().families)


def test_an_engine_without_a_cache_computes_every_prompt() -> None:
    plan = plan_of(traffic=SHARED.replace("12/s", "2/s"), rest="choices: {engine: capstan}")
    assert not any(group.cache.prefix_caching for group in plan.groups)
    assert "what prompts share is not reused" in " ".join(plan.predictions.notes)


def test_thinned_traffic_keeps_conversations_whole() -> None:
    talk = """  - name: chat
    model: small
    sessions: {rate: 2/s, turns: {mean: 6}, think_time: {mean: 2s}, growing_context: true}
    prompt_tokens: 60
    output_tokens: 40
    slo: {ttft: {p90: 1s}}
"""
    problem = problem_of(traffic=talk)
    assert problem.workload.session is not None
    part = problem.master().pricer.part(("chat",), 0.5)
    assert part.session is not None
    kept = set(part.session.tolist())
    assert 0.3 < len(part) / len(problem.workload) < 0.7
    assert int(np.isin(problem.workload.session, list(kept)).sum()) == len(part)
    twice = problem.master().pricer.part(("chat",), 2.0)
    assert twice.gap_s is not None
    assert problem.workload.gap_s is not None
    assert twice.gap_s.sum() == pytest.approx(problem.workload.gap_s.sum() / 2)


TURNS = """  - name: chat
    model: small
    sessions: {rate: 1.5/s, turns: {mean: 8}, think_time: {mean: 10s}, growing_context: true}
    prompt_tokens: {mean: 300, max: 1000}
    output_tokens: {mean: 40, max: 100}
    slo: {ttft: {p90: 1s}, tpot: {p90: 80ms}}
"""


NARROW = "disaggregation: never, small: {tensor_parallel: 1, pipeline_parallel: 1}"


def test_turns_that_come_back_to_their_replica_find_more() -> None:
    models = "{small: {architecture: meta-llama/Llama-3.1-8B, max_context: 8Ki}}"
    by_load, by_turn = (
        plan_of(models=models, traffic=TURNS, rest=f"choices: {{router: {router}, {NARROW}}}")
        for router in ("least_outstanding", "sticky")
    )
    assert by_turn.router == "sticky"
    assert by_turn.certificate.value < by_load.certificate.value
    assert "routing by conversation or by prefix would find more" in " ".join(by_load.predictions.notes)
    assert "would find more" not in " ".join(by_turn.predictions.notes)


# ----------------------------------------------------------------------------------------------------------- host tier


def hosted(dram: str = "", pool: str = L40S, models: str = EIGHT, traffic: str = SHARED) -> Problem:
    text = text_of(models=models, traffic=traffic, pools=(pool,), rest="choices: {small: {tensor_parallel: [1, 2]}}")
    if dram:
        text = text.replace("hardware:\n", f"hardware:\n  host: {{dram: {dram}}}\n")
    return pose(parse_deployment(text).spec, Path())


def test_host_blocks_by_hand() -> None:
    """Llama-3.1-8B keeps 131,072 bytes a token; a quarter of the host's share belongs to each of four devices."""
    sizes = {
        family.layout.tensor_parallel: family.options.host_blocks
        for family in hosted("256GB").families
        if family.options.host_blocks and family.layout.pipeline_parallel == 1
    }
    assert sizes[1] == int(HOST_SHARE * 256e9 / 4 / (131_072 * 16))
    assert sizes[2] == int(HOST_SHARE * 256e9 / 4 / (65_536 * 16))


def test_a_host_tier_is_tried_where_it_is_declared_and_prompts_share_something() -> None:
    assert not any(family.options.host_blocks for family in hosted().families)
    assert not any(family.options.host_blocks for family in hosted("256GB", traffic=CHAT).families)
    found = hosted("256GB").families
    assert {family.options.host_blocks > 0 for family in found} == {True, False}
    assert all((family.times.host_token_s > 0) == (family.options.host_blocks > 0) for family in found)


def test_a_declared_host_link_is_what_blocks_cross() -> None:
    text = text_of(models=EIGHT, traffic=SHARED).replace(
        "hardware:\n", "hardware:\n  host: {dram: 256GB, pcie: 10GB/s}\n"
    )
    slow = [family for family in pose(parse_deployment(text).spec, Path()).families if family.options.host_blocks]
    usual = [family for family in hosted("256GB").families if family.options.host_blocks]
    assert slow[0].key == usual[0].key
    assert slow[0].times.host_token_s > 2 * usual[0].times.host_token_s


# ---------------------------------------------------------------------------------------------------------- speculation


def test_draft_lengths_are_powers_of_two_and_the_most() -> None:
    def lengths(most: int, acceptance: float = 0.5) -> tuple[int, ...]:
        return draft_lengths(SpeculativeSpec(method="ngram", acceptance=acceptance, max_draft=most))

    assert lengths(1) == (1,)
    assert lengths(3) == (1, 2, 3)
    assert lengths(6) == (1, 2, 4, 6)
    assert lengths(6, 0.0) == ()


def test_least_steps_by_hand() -> None:
    outputs = np.array([1, 9, 13])
    assert least_steps(outputs, Speculation(draft_tokens=3, acceptance=1.0)).tolist() == [0, 2, 3]
    assert least_steps(outputs, Speculation(draft_tokens=3, acceptance=0.0)).tolist() == [0, 8, 12]


@pytest.mark.parametrize(("drafts", "acceptance"), [(1, 0.3), (3, 0.7), (5, 0.95)])
def test_drawn_acceptance_takes_more_steps_than_the_least(drafts: int, acceptance: float) -> None:
    outputs = np.random.default_rng(1).integers(1, 400, 500)
    steps = 0
    for request, output in enumerate(outputs.tolist()):
        generated = 1
        while generated < output:
            generated += 1 + accepted_tokens(0, request, generated, draft_tokens=drafts, acceptance=acceptance)
            steps += 1
    least = float(least_steps(outputs, Speculation(draft_tokens=drafts, acceptance=acceptance)).sum())
    assert 0.93 * steps < least <= steps


def test_speculation_takes_more_than_the_bound_says() -> None:
    problem = problem_of(
        models=speculating("70%"), traffic=TIGHT, pools=(H100,), rest="choices: {small: {tensor_parallel: 1}}"
    )
    load = requests([300] * 200, [80] * 200, gap_s=0.05)
    for family in problem.families:
        work_s = optimistic_work_s(
            family.times, load.prompt_tokens, load.output_tokens, speculation=family.options.speculation
        )
        assert work_s < busy_s(variant_of(family), load)
    assert {family.options.draft_tokens for family in problem.families} == {0, 1, 2, 3}


def test_speculation_meets_a_tight_limit_with_fewer_devices() -> None:
    plain, never, often = (
        plan_of(models=models, traffic=TIGHT)
        for models in ("{small: Qwen/Qwen3-8B}", speculating("0%"), speculating("70%"))
    )
    assert often.certificate.value < plain.certificate.value
    (group,) = often.groups
    assert group.scheduling.speculation is not None
    assert group.limits.max_num_batched_tokens >= group.limits.max_num_seqs * (
        1 + group.scheduling.speculation.draft_tokens
    )
    assert never.certificate.value == plain.certificate.value
    assert all(item.scheduling.speculation is None for item in never.groups)
    assert "70%" in text_of(models=speculating("70%"))


def test_who_drafts_takes_time_and_memory() -> None:
    def family(more: str) -> Family:
        problem = problem_of(
            models=speculating("70%", more), traffic=TIGHT, rest="choices: {small: {tensor_parallel: 1}}"
        )
        return next(family for family in problem.families if family.options.draft_tokens == 2)

    looked_up = family("method: ngram")
    head = family("method: eagle")
    model = family("method: draft, draft_model: Qwen/Qwen3-0.6B")
    seconds = [item.options.speculation.draft_s for item in (looked_up, head, model) if item.options.speculation]
    assert seconds[0] == 0 < seconds[1] < seconds[2]
    caches = [variant_of(item).cache for item in (looked_up, head, model)]
    assert [cache.memory.draft_bytes > 0 for cache in caches] == [False, True, True]
    assert caches[0].num_blocks > caches[1].num_blocks > caches[2].num_blocks
    # Qwen3-8B keeps 36 layers x 8 heads x 128 x 2 x 2 bytes, EAGLE one layer more
    assert caches[1].memory.kv_bytes_per_token == 37 * 4096


def test_a_draft_model_has_to_be_named() -> None:
    with pytest.raises(InputError) as caught:
        problem_of(models=speculating("70%", "method: draft"))
    assert caught.value.field == "models.small.speculative.draft_model"


# ----------------------------------------------------------------------------------------------- priorities, engines


LATER = CHAT.replace("- name: chat", "- name: batch").replace("    slo", "    priority: low\n    slo")


def test_unlike_priorities_are_served_in_their_order() -> None:
    assert {family.options.order for family in problem_of(traffic=CHAT + LATER).families} == {"priority"}
    assert {family.options.order for family in problem_of(traffic=LATER).families} == {"fcfs"}, "one alone is like all"
    plan = plan_of(traffic=CHAT + LATER)
    assert {group.scheduling.order for group in plan.groups} == {"priority"}


def test_priorities_hold_the_urgent_class_up_less() -> None:
    problem = problem_of(traffic=(CHAT + LATER).replace("4/s", "40/s"), rest="choices: {small: {tensor_parallel: 1}}")
    family = problem.families[0]
    groups = [(FleetGroup("only", 1, variant_of(item, 16).replica),) for item in (family, family.with_options(NEUTRAL))]
    routes = tuple(Route(request_class=name, group="only", share=1.0) for name in ("chat", "batch"))
    urgent = problem.workload.of_class("chat")
    first, usual = (
        simulate_fleet(group, routes, problem.workload).percentile_s("ttft", 90, urgent) for group in groups
    )
    assert first < usual


def test_engines_stand_beside_each_other() -> None:
    problem = problem_of(rest="choices: {engine: [vllm, sglang, trtllm]}")
    by_engine = {name: [f for f in problem.families if f.engine.name == name] for name in ("vllm", "sglang", "trtllm")}
    assert all(by_engine.values())
    alone = [plan_of(rest=f"choices: {{engine: {name}}}").certificate.value for name in by_engine]
    together = plan_of(rest="choices: {engine: [vllm, sglang, trtllm]}")
    assert together.certificate.value <= min(alone)


# ----------------------------------------------------------------------------------------- plans say what was simulated


@pytest.mark.parametrize(
    ("models", "traffic"),
    [(EIGHT, SHARED), (speculating("70%"), TIGHT), ("{small: Qwen/Qwen3-0.6B}", CHAT + LATER)],
    ids=["prefixes", "speculation", "priority"],
)
def test_a_plan_simulates_as_it_was_planned(models: str, traffic: str) -> None:
    plan = plan_of(models=models, traffic=traffic)
    again = simulate_plan(plan, Path())
    for prediction, item in zip(plan.predictions.classes, again["classes"], strict=True):
        assert item["ttft_s"]["p90"] == pytest.approx(prediction.ttft_s["p90"], rel=1e-9)
        assert item["tpot_s"]["p90"] == pytest.approx(prediction.tpot_s["p90"], rel=1e-9)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_old_documents_of_discarded_configurations_still_read() -> None:
    old = {
        "configuration": {
            "model": "m", "pool": "p", "device": "d", "engine": "vllm", "tensor_parallel": 1, "pipeline_parallel": 1,
            "weights_dtype": "bf16", "kv_dtype": "bf16",
        },
        "reason": "cost", "detail": "x",
    }  # fmt: skip
    found = Discarded.model_validate(old).configuration
    assert (found.expert_parallel, found.prefix_caching, found.draft_tokens) == (1, False, 0)


def test_equal_inputs_give_equal_plans() -> None:
    spec = spec_of(models=speculating("70%"), traffic=TIGHT)
    one, two = (make_plan(spec, Path(), version="test").model_dump_json() for _ in range(2))
    assert one == two


# ----------------------------------------------------------------------------------------------------------- power caps


def capped(watts: str) -> str:
    return H100.replace("price:", f"power_cap: {watts}, price:")


def test_a_cap_stretches_what_draws_more_and_nothing_else() -> None:
    free, loose, tight = (
        problem_of(models=EIGHT, pools=(pool,), rest="choices: {small: {tensor_parallel: 1}}").families[0].times
        for pool in (H100, capped("700W"), capped("350W"))
    )
    assert loose.tokens_s == free.tokens_s
    assert tight.tokens_s[4096] > 1.2 * free.tokens_s[4096], "long prompts draw the most"
    assert tight.tokens_s[1] / free.tokens_s[1] < tight.tokens_s[4096] / free.tokens_s[4096]
    assert all(slow >= fast for slow, fast in zip(tight.tokens_s, free.tokens_s, strict=True))


def test_a_capped_pool_draws_no_more_than_its_cap_and_carries_less() -> None:
    busy = SHARED.replace("    shared_prefix: {tokens: 1280, groups: 4}\n", "").replace("12/s", "60/s")
    free, tight = (plan_of(models=EIGHT, traffic=busy, pools=(pool,)) for pool in (H100, capped("350W")))
    assert tight.certificate.value > free.certificate.value
    for group, prediction in zip(tight.groups, tight.predictions.groups, strict=True):
        assert prediction.power_w is not None
        assert prediction.power_w <= 350 * group.layout.gpus * group.replicas
    again = simulate_plan(tight, Path())
    assert again["classes"][0]["ttft_s"]["p90"] == pytest.approx(tight.predictions.classes[0].ttft_s["p90"], rel=1e-9)


def test_a_cap_that_stops_all_work_is_named() -> None:
    with pytest.raises(InputError) as caught:
        problem_of(pools=(capped("150W"),))
    assert caught.value.field == "hardware.pools[0]"
    assert "power_cap" in caught.value.message


# ------------------------------------------------------------------------------------------------------------- adapters


def adapted(count: int, rank: int) -> str:
    return f"{{small: {{architecture: meta-llama/Llama-3.1-8B, adapters: {{count: {count}, rank: {rank}}}}}}}"


def test_adapters_take_memory_by_hand() -> None:
    """Inputs and outputs in a layer of Llama-3.1-8B: q and o 8,192 each, k and v 5,120, gate, up and down 18,432."""
    elements = 2 * 8192 + 2 * 5120 + 3 * 18_432
    problem = problem_of(models=adapted(4, 16), rest="choices: {small: {tensor_parallel: 1, pipeline_parallel: 1}}")
    (family,) = problem.families
    memory = variant_of(family).cache.memory
    assert memory.adapter_bytes == 32 * elements * 4 * 16 * 2
    plain = replace(family, adapters=None)
    assert variant_of(plain).cache.memory.kv_bytes - memory.kv_bytes == memory.adapter_bytes


def test_adapters_slow_steps_down_more_the_more_there_are_and_the_larger() -> None:
    def step_s(models: str) -> float:
        pins = "choices: {small: {tensor_parallel: 1, pipeline_parallel: 1}}"
        return problem_of(models=models, pools=(H100,), rest=pins).families[0].times.tokens_s[64]

    seconds = [step_s(models) for models in (EIGHT, adapted(1, 16), adapted(16, 16), adapted(16, 64))]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 4


def test_a_plan_with_adapters_simulates_as_it_was_planned_and_needs_no_less() -> None:
    busy = CHAT.replace("4/s", "30/s")
    plain, many = (plan_of(models=models, traffic=busy) for models in (EIGHT, adapted(32, 64)))
    assert many.certificate.value >= plain.certificate.value
    again = simulate_plan(many, Path())
    assert again["classes"][0]["tpot_s"]["p90"] == pytest.approx(many.predictions.classes[0].tpot_s["p90"], rel=1e-9)


def test_an_engine_without_adapters_is_dropped_with_the_reason() -> None:
    problem = problem_of(models=adapted(1, 8), rest="choices: {engine: [vllm, capstan]}")
    assert {family.engine.name for family in problem.families} == {"vllm"}
    assert "capstan serves no adapters" in {item.detail for item in problem.dropped}


# ------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("name", ["shared-prompts", "speculative", "wide-mixture"])
def test_the_examples_of_options_are_planned(name: str) -> None:
    file = Path(specs.__file__).parent / "examples" / f"{name}.yaml"
    plan = make_plan(load_deployment(file), file.parent, version="test")
    assert all(check.holds for check in plan.certificate.checks)
    (group,) = plan.groups
    if name == "shared-prompts":
        assert (group.cache.prefix_caching, group.cache.host_blocks > 0, group.scheduling.order) == (
            True,
            True,
            "priority",
        )
    elif name == "speculative":
        assert group.scheduling.speculation is not None
    else:
        assert group.layout.expert_parallel == 8
