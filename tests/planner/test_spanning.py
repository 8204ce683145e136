"""Replicas over several pools: which are tried, the plan that they make, its laws, and what simulation makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planning import plan_of, problem_of, spec_of

import specs
from planner.answers.changes import with_pool
from planner.answers.resolve import changed as changed_problem
from planner.candidates.family import Family
from planner.explain import explain
from planner.layout_words import pools_words, stages_words
from planner.network.flows import flows
from planner.optimize.certify import recheck
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import pose
from planner.schedule.switching import switch
from specs.deployment import DeploymentSpec, Objective, load_deployment
from specs.errors import NoPlanError
from specs.plan import Discarded, Plan, StageMachine

EXAMPLE = Path(specs.__file__).parent / "examples" / "old-and-new.yaml"
MODELS = "{chat: {architecture: meta-llama/Llama-3.1-70B, max_context: 48k}}"
TRAFFIC = """  - name: chat
    model: chat
    arrivals: {rate: 0.4/s}
    prompt_tokens: 1000
    output_tokens: 100
    slo: {ttft: {p90: 6s}, tpot: {p90: 200ms}}
"""


def pools(old: int = 2, new: int = 2, node: int = 2, rent: str = "gpu") -> tuple[str, ...]:
    return (
        f"{{name: old, device: a100-pcie, count: {old}, gpus_per_node: {node}, price: $1.20/h, rent: {rent}}}",
        f"{{name: new, device: l40s, count: {new}, gpus_per_node: {node}, price: $1.10/h, rent: {rent}}}",
    )


def choices(text: str = "", top: str = "") -> str:
    return f"objective: minimise cost\nchoices:\n  chat: {{stages_over: [old, new]{text}}}\n{top}"


def parts(**changed: Any) -> dict[str, Any]:
    return {"models": MODELS, "traffic": TRAFFIC, "pools": pools(), "rest": choices()} | changed


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(**parts(rest=choices(", tensor_parallel: 2")))


def spanning(**changed: Any) -> tuple[list[Family], list[Discarded]]:
    problem = problem_of(**parts(**changed))
    return (
        [family for family in problem.families if family.stage_pools],
        [item for item in problem.dropped if item.configuration.stage_pools],
    )


def test_the_example_is_served_by_one_replica_on_both_machines() -> None:
    """Neither machine holds a request of 48k tokens beside the weights: alone, each is dropped for its memory."""
    found = make_plan(load_deployment(EXAMPLE), EXAMPLE.parent)
    (group,) = found.groups
    assert tuple(dict.fromkeys(stage.pool for stage in group.stages)) == ("old", "new")
    assert group.layout.pipeline_stages[0] > group.layout.pipeline_stages[-1]  # A100s have more memory, and faster
    assert {item.reason for item in found.discarded if not item.configuration.stage_pools} == {"memory", "inventory"}
    assert all(check.holds for check in found.certificate.checks)
    assert found.cost.usd_per_hour == pytest.approx(2 * 1.2 + 2 * 1.1)


def test_traffic_that_only_a_cut_between_those_for_decode_and_prompt_steps_serves(tmp_path: Path) -> None:
    """At 0.73/s neither of those keeps both limits, as steps of both kinds are mixed; 45 + 35 layers do."""
    busier = tmp_path / "busier.yaml"
    busier.write_text(EXAMPLE.read_text(encoding="utf-8").replace("rate: 0.4/s", "rate: 0.73/s"), encoding="utf-8")
    spec = load_deployment(busier)
    found = make_plan(spec, EXAMPLE.parent)
    (group,) = found.groups
    assert found.cost.usd_per_hour == pytest.approx(4.6)
    cut = group.layout.pipeline_stages[0]
    problem = pose(spec, EXAMPLE.parent)
    decode, prompt = [f.layout.pipeline_stages[0] for f in problem.families if len(f.stage_pools) == 2][:2]
    assert prompt < cut < decode


def test_where_there_is_no_plan_it_is_said_that_not_every_cut_was_tried() -> None:
    with pytest.raises(NoPlanError, match=r"with the cuts of layers over several pools that were tried"):
        plan_of(**parts(rest=choices(", tensor_parallel: 2"), traffic=TRAFFIC.replace("200ms", "5ms")))


def test_without_the_choice_no_replica_stands_in_several_pools_and_plans_have_no_trace_of_it() -> None:
    problem = problem_of(pools=pools(), rest="objective: minimise cost")
    assert not any(family.stage_pools for family in problem.families)
    found = plan_of(pools=pools(), rest="objective: minimise cost")
    text = found.to_json()
    assert not any(name in text for name in ("stages_over", "stage_pools", '"stages"'))
    assert Plan.model_validate_json(text) == found


def test_what_is_tried_over_two_machines() -> None:
    """TP 2 with a stage on each, and TP 1 with two on each; one and two stages would be unlike parts of a replica."""
    found, dropped = spanning()
    assert {tuple(stage.name for stage in family.stage_pools) for family in found} == {
        ("old", "new"),
        ("old", "old", "new", "new"),
    }
    assert all(family.gpus_in("old") == family.gpus_in("new") == 2 for family in found)
    assert all(family.gpus == 4 and family.most_replicas == 1 for family in found)
    assert len({family.key for family in found}) == len(found)
    of_three = [item for item in dropped if len(item.configuration.stage_pools) == 3]
    assert {item.reason for item in of_three} == {"node", "inventory"}
    assert any("equally many ranks" in item.detail for item in of_three)
    (small,) = [item for item in dropped if item.reason == "memory"]
    assert (small.configuration.tensor_parallel, small.configuration.pipeline_parallel) == (1, 2)


@pytest.mark.parametrize(
    ("changed", "reason", "words"),
    [
        ({"rest": choices(top="  engine: [vllm, sglang]")}, "engine", "sglang is not known"),
        ({"models": MODELS.replace("max_context", "adapters: {count: 2, rank: 8}, max_context")}, "engine", "adapters"),
        ({"models": MODELS.replace("max_context", "kv_cache: fp4, max_context")}, "dtype", "no kernels for a fp4 KV"),
        ({"pools": pools(new=1)}, "inventory", "2 devices of new, which has 1"),
        ({"pools": (pools()[0], pools()[1].replace("l40s", "mi300x"))}, "engine", "one vendor"),
    ],
)
def test_what_cannot_be_is_dropped_with_its_reason(changed: dict[str, Any], reason: str, words: str) -> None:
    _, dropped = spanning(**changed)
    assert any(item.reason == reason and words in item.detail for item in dropped), dropped


def test_pins_hold_for_replicas_over_pools() -> None:
    found, _ = spanning(rest=choices(", tensor_parallel: 1, pipeline_parallel: 4"))
    assert {(family.layout.tensor_parallel, len(family.stage_pools)) for family in found} == {(1, 4)}
    problem = problem_of(**parts(rest=choices(", pool: old")))
    assert {family.pool.name for family in problem.families if not family.stage_pools} <= {"old"}
    assert any(family.stage_pools for family in problem.families)


def test_three_pools_are_spanned_in_pairs_and_together() -> None:
    three = (*pools(), "{name: more, device: l40s, count: 2, gpus_per_node: 2, price: $1/h}")
    found, _ = spanning(pools=three, rest=choices().replace("[old, new]", "[new, old, more]"))
    spanned = {tuple(dict.fromkeys(stage.name for stage in family.stage_pools)) for family in found}
    assert spanned == {("new", "old"), ("new", "more"), ("old", "more"), ("new", "old", "more")}


def test_pins_that_no_model_has_layers_for_are_not_tried() -> None:
    found, dropped = spanning(rest=choices(", pipeline_parallel: [2, 1000]"))
    assert {len(family.stage_pools) for family in found} == {2}
    assert {len(item.configuration.stage_pools) for item in dropped} <= {2}


def test_a_plan_over_two_pools_keeps_every_law(plan: Plan) -> None:
    (group,) = plan.groups
    assert group.stages == (StageMachine(pool="old", device="a100-pcie"), StageMachine(pool="new", device="l40s"))
    (replica,) = group.placement
    assert [(pool, slot.node, slot.device) for pool, slot in group.places(replica)] == [
        ("old", 0, 0),
        ("old", 0, 1),
        ("new", 0, 0),
        ("new", 0, 1),
    ]
    assert plan.cost.gpus == plan.cost.gpus_rented == 4
    assert plan.cost.nodes == {"old": 1, "new": 1}
    assert not [check for check in recheck(plan) if not check.holds]
    laws = {check.law for check in plan.certificate.checks}
    assert {"group-0: stage 0 fits a device of old", "group-0: stage 1 fits a device of new"} <= laws
    assert Plan.model_validate_json(plan.to_json()) == plan


def changed(plan: Plan, **fields: Any) -> Plan:
    return plan.model_copy(update={"groups": (plan.groups[0].model_copy(update=fields),)})


def broken(plan: Plan) -> set[str]:
    return {check.law for check in recheck(plan) if not check.holds}


def test_laws_find_what_is_wrong_with_stages(plan: Plan) -> None:
    (group,) = plan.groups
    old, new = group.stages
    first, last = group.layout.pipeline_stages
    turned = changed(plan, stages=(old, new), layout=group.layout.model_copy(update={"pipeline_stages": (last, first)}))
    assert "group-0: stage 1 fits a device of new" in broken(turned)
    both = changed(plan, stages=(old, old))
    assert {"old: devices used are in stock", "old: no device is used twice"} & broken(both)
    assert "the hourly cost adds up" in broken(both)
    wrong = changed(plan, stages=(old, StageMachine(pool="new", device="a100-pcie")))
    assert "group-0: its device is that of its pool" in broken(wrong)
    nowhere = changed(plan, stages=(old, StageMachine(pool="gone", device="l40s")))
    assert {"pool of group-0 is declared", "group-0: its device is that of its pool"} <= broken(nowhere)
    spec = {
        **plan.spec,
        "choices": {**plan.spec["choices"], "models": {"chat": {**plan.spec["choices"]["models"]["chat"]}}},
    }
    spec["choices"]["models"]["chat"].pop("stages_over")
    assert "choices.chat.stages_over is kept by group-0" in broken(plan.model_copy(update={"spec": spec}))
    torn = group.placement[0].model_copy(update={"slots": tuple(group.placement[0].slots[i] for i in (0, 2, 1, 3))})
    assert "old: no device is used twice" in broken(changed(plan, placement=(torn,)))


@pytest.mark.parametrize("stages", [1, 3])
def test_a_plan_names_a_pool_for_every_stage(plan: Plan, stages: int) -> None:
    data = plan.model_dump(mode="json")
    data["groups"][0]["stages"] = [{"pool": "old", "device": "a100-pcie"}] * stages
    with pytest.raises(ValueError, match=f"{stages} stages are named, the layout has 2"):
        Plan.model_validate(data)
    data["groups"][0]["stages"] = [{"pool": "new", "device": "l40s"}] * 2
    with pytest.raises(ValueError, match="not on the group's own pool"):
        Plan.model_validate(data)


def test_the_plan_is_simulated_as_it_was_made(plan: Plan) -> None:
    found = simulate_plan(plan, Path())
    (made,) = plan.predictions.classes
    assert found["classes"][0]["ttft_s"]["p90"] == pytest.approx(made.ttft_s["p90"])
    assert found["classes"][0]["tpot_s"]["p90"] == pytest.approx(made.tpot_s["p90"])
    assert found["energy"]["power_w"] == pytest.approx(plan.predictions.groups[0].power_w)
    exact = simulate_plan(plan, Path(), exact=True, seconds=200)
    fast = simulate_plan(plan, Path(), seconds=200)
    assert exact["classes"] == fast["classes"]


def test_the_faster_machine_alone_in_both_stages_would_be_faster(plan: Plan) -> None:
    """The same plan with its second stage on an old device: its step takes less, and so do the answers."""
    (group,) = plan.groups
    old = changed(plan, stages=(group.stages[0],) * 2)
    tpot = [simulate_plan(each, Path(), seconds=300)["classes"][0]["tpot_s"]["p50"] for each in (plan, old)]
    assert tpot[1] < 0.95 * tpot[0]


def test_hidden_states_cross_the_network_between_the_pools(plan: Plan) -> None:
    (flow,) = flows(plan)
    assert (flow.source, flow.target) == ("old/0", "new/0")
    load = plan.predictions.groups[0]
    rate = load.prompt_tokens_per_s + load.output_tokens_per_s
    assert flow.bytes_per_s == pytest.approx(2 * rate * 8192 * 2)  # each of two ranks sends all of it


def test_rented_by_node_both_machines_are_paid_and_a_second_replica_takes_the_next_ones() -> None:
    found = plan_of(
        **parts(pools=pools(old=4, new=4, rent="node"), rest=choices(", replicas: 2, tensor_parallel: 2, pool: new"))
    )
    places = Counter(
        (pool, slot.node, slot.device)
        for group in found.groups
        for replica in group.placement
        for pool, slot in group.places(replica)
    )
    assert max(places.values()) == 1
    assert len(places) == found.cost.gpus == 8
    assert found.cost.nodes == {"old": 2, "new": 2}
    assert found.cost.usd_per_hour == pytest.approx(4 * 1.2 + 4 * 1.1)


def test_spot_pools_count_for_the_time_that_all_machines_are_there() -> None:
    spot = "spot: {discount: 50%, interruptions: 0.5/h, recovery: 12min}"
    both = tuple(pool.replace("rent: gpu", f"rent: gpu, {spot}") for pool in pools())
    master = problem_of(**parts(pools=both)).master()
    family = next(family for family in master.families if family.stage_pools)
    there = 1 / (1 + 0.5 * 0.2)
    assert master.optimistic(family).loads[0][1] == pytest.approx(master.pricer.load(family, "chat") / there**2)


def test_words_name_every_pool(plan: Plan) -> None:
    (group,) = plan.groups
    first, last = group.layout.pipeline_stages
    assert (pools_words(group), stages_words(group)) == ("old + new", f"{first} layers on old, {last} on new")
    found = {pool.pool: pool for pool in explain(plan).pools}
    assert (found["old"].used_gpus, found["new"].used_gpus) == (2, 2)
    assert f"{first} layers on old" in found["new"].text
    other = next(item.configuration for item in plan.discarded if item.configuration.stage_pools)
    assert pools_words(other) == "old + new"


def test_a_schedule_keeps_a_replica_only_where_all_of_its_machines_stay(plan: Plan) -> None:
    spec = DeploymentSpec.model_validate(plan.spec)
    same = switch((plan, plan), ("a", "b"), spec, 0.0)
    assert same is not None
    assert (same.kept, same.started, same.devices) == (1, 0, {"old": 2, "new": 2})
    (group,) = plan.groups
    moved = changed(plan, stages=(group.stages[0],) * 2)
    assert switch((plan, moved), ("a", "b"), spec, 0.0) is None  # both do not stand in two devices of old


def test_a_model_that_no_pool_holds_alone_is_told_that_its_stages_may_stand_in_several() -> None:
    with pytest.raises(NoPlanError) as caught:
        plan_of(**parts(rest="objective: minimise cost"))
    assert any(mend.startswith("choices.chat.stages_over: [old, new]") for mend in caught.value.mends)
    with pytest.raises(NoPlanError) as other:  # for which there is no such replica, nothing of the kind is said
        plan_of(**parts(rest="objective: minimise energy"))
    assert not any("stages_over" in mend for mend in other.value.mends)


def test_other_prices_and_larger_pools_hold_for_every_stage() -> None:
    """As `capstan explain --what-if` asks: the same families, their step times known, in the pools as they are now."""
    problem = problem_of(**parts(rest=choices(", tensor_parallel: 2")))
    dearer = changed_problem(problem, with_pool(problem.spec, 1, usd_per_gpu_hour=2.2))
    before, after = (next(family for family in each.families if family.stage_pools) for each in (problem, dearer))
    assert before.key == after.key
    assert [pool.usd_per_hour for pool in after.stage_pools] == [1.2, 2.2]
    larger = changed_problem(problem, with_pool(problem.spec, 1, count=4))
    assert next(family for family in larger.families if family.stage_pools).stage_pools[1].count == 4


def test_several_machines_of_a_pool_are_taken_where_they_are_pinned_or_nothing_smaller_holds_the_model() -> None:
    more = {"pools": pools(old=4, new=4)}
    found, dropped = spanning(**more)
    assert {len(family.stage_pools) * family.layout.tensor_parallel for family in found} == {4}
    assert any("on one machine of each pool fits" in item.detail for item in dropped)
    pinned, _ = spanning(**more, rest=choices(", pipeline_parallel: 4, tensor_parallel: 2"))
    assert {family.gpus for family in pinned} == {8}
    small = tuple(pool.replace("a100-pcie", "l40s") for pool in more["pools"])
    large, _ = spanning(pools=small, models=MODELS.replace("48k", "120k"))  # one machine of each holds no such request
    assert {family.gpus for family in large} == {6, 8}


def test_stages_that_share_a_node_over_a_fast_link_are_left_to_tensor_parallelism() -> None:
    fast = tuple(pool.replace("a100-pcie", "a100-sxm") for pool in pools())
    found, dropped = spanning(pools=fast)
    assert {family.layout.tensor_parallel for family in found} == {2}
    assert any(item.reason == "pipeline" for item in dropped)
    pinned, _ = spanning(pools=fast, rest=choices(", pipeline_parallel: 4"))
    assert {family.layout.tensor_parallel for family in pinned} == {1}


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.model_copy(update={"objective": Objective(quantity="energy")}),
        lambda spec: spec.model_copy(update={"limits": spec.limits.model_copy(update={"survive_node_failures": 1})}),
    ],
)
def test_questions_about_what_is_not_planned_for_them_leave_such_replicas_out(
    change: Callable[[DeploymentSpec], DeploymentSpec],
) -> None:
    spec = spec_of(**parts())
    assert any(family.stage_pools for family in pose(spec, Path()).families)
    assert not any(family.stage_pools for family in pose(change(spec), Path()).families)


def test_together_machines_may_be_cheaper_than_either_pool_alone() -> None:
    """Two A100s alone carry too little, L40S alone take four; two of each carry it for less than both apart."""
    cheap = (
        "{name: old, device: a100-pcie, count: 2, gpus_per_node: 2, price: $0.60/h}",
        "{name: new, device: l40s, count: 8, gpus_per_node: 2, price: $1.10/h}",
    )
    traffic = TRAFFIC.replace("0.4/s", "1.2/s").replace("output_tokens: 100", "output_tokens: 200")
    traffic = traffic.replace("6s", "4s").replace("200ms", "150ms")
    models = "{chat: meta-llama/Llama-3.1-70B}"
    apart = plan_of(models=models, pools=cheap, traffic=traffic, rest="objective: minimise cost")
    both = plan_of(models=models, pools=cheap, traffic=traffic, rest=choices())
    assert [group.gpus_by_pool for group in both.groups] == [{"old": 2, "new": 2}]
    assert both.cost.usd_per_hour == pytest.approx(2 * 0.6 + 2 * 1.1)
    assert apart.cost.usd_per_hour is not None
    assert both.cost.usd_per_hour < 0.8 * apart.cost.usd_per_hour
