"""Why a plan is what it is, and what differs between two."""

from __future__ import annotations

import pytest
from planning import CHAT, H100, L40S, plan_of

from planner.amounts import amount
from planner.diff import diff
from planner.discards import discarded_configurations
from planner.explain import explain, nearest_misses
from planner.layout_words import layout_words
from planner.problem import Problem, pose
from specs.deployment import DeploymentSpec
from specs.plan import Layout, Plan

LLAMA = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: [bf16, fp8]}}"
A10G = "{name: a10g, device: a10g, count: 4, gpus_per_node: 4, price: $5/h, rent: gpu}"
L4 = "{name: l4, device: l4, count: 1, gpus_per_node: 1, price: $0.1/h, rent: gpu}"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(
        models=LLAMA,
        pools=(L40S, H100, A10G, L4),
        traffic=CHAT.replace("4/s", "25/s"),
        rest="limits: {budget: $2/h}",
    )


@pytest.fixture(scope="module")
def problem(plan: Plan) -> Problem:
    return pose(DeploymentSpec.model_validate(plan.spec), ".")


def test_every_configuration_is_used_or_discarded_and_the_counts_add_up(plan: Plan, problem: Problem) -> None:
    every = len(problem.families) + len(problem.dropped)
    used = {
        (group.pool, group.layout.model_dump_json(), group.weights_dtype, group.cache.kv_dtype) for group in plan.groups
    }
    sides = [item for item in plan.discarded if item.configuration.role != "unified"]  # those that were looked at
    assert len(plan.discarded) - len(sides) + len(used) == every
    assert len({item.configuration.model_dump_json() for item in sides}) == len(sides) <= len(problem.role_families)
    assert sum(plan.discarded_counts.values()) == len(plan.discarded)
    assert explain(plan).counts == plan.discarded_counts


def test_no_configuration_that_was_simulated_is_called_unsimulated(plan: Plan) -> None:
    for item in plan.discarded:
        if "never simulated" in item.detail:
            assert item.configuration.max_num_seqs == 0
        elif item.reason in ("cost", "tie"):
            assert "(simulated)" in item.detail


def test_the_limits_shown_are_those_that_the_quoted_failure_had(problem: Problem) -> None:
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    quoted = {item.configuration.model_dump_json() for item in discarded_configurations(problem, master, decision)}
    failed = [bracket for bracket in master.brackets.values() if bracket.failure is not None and bracket.upper > 0]
    chosen = {item.column.family.key for item in decision.bought}
    assert failed
    for bracket in failed:
        if bracket.family.key not in chosen and bracket.failure is not None:
            limits = bracket.failure.variant.limits
            assert bracket.family.configuration(limits).model_dump_json() in quoted


def test_nearest_misses_come_in_order_one_for_each_layout(plan: Plan) -> None:
    misses = nearest_misses(plan)
    assert misses
    keys = [(item.reason == "slo", item.margin) for item in misses]
    assert keys == sorted(keys)
    where = [
        (item.configuration.pool, item.configuration.tensor_parallel, item.configuration.pipeline_parallel)
        for item in misses
    ]
    assert len(where) == len(set(where))
    assert nearest_misses(plan, most=2) == misses[:2]
    assert not {"memory", "heads", "dominated"} & {item.reason for item in misses}


def test_every_pool_has_its_verdict(plan: Plan) -> None:
    verdicts = {verdict.pool: verdict for verdict in explain(plan).pools}
    assert set(verdicts) == {"l40s", "h100", "a10g", "l4"}
    chosen = {group.pool for group in plan.groups}
    for name, verdict in verdicts.items():
        assert (verdict.used_gpus > 0) == (name in chosen)
        assert verdict.text.startswith("chosen: ") == (name in chosen)
    assert "dearer" in verdicts["h100"].text or "costs the same" in verdicts["h100"].text
    assert "best: TP" in verdicts["a10g"].text
    assert verdicts["l4"].text.startswith(("the pool holds too few", "breaks a latency limit"))


def test_a_pool_left_out_by_choices_says_so() -> None:
    found = plan_of(pools=(L40S, H100), rest="choices: {small: {pool: l40s}}")
    verdicts = {verdict.pool: verdict.text for verdict in explain(found).pools}
    assert verdicts["h100"] == "no configuration was allowed here by `choices`"


def test_what_binds_is_what_has_no_room(plan: Plan) -> None:
    binding = {item.statement: item for item in explain(plan).binding}
    assert plan.cost.usd_per_hour == 2.0
    assert binding["limits.budget"].used == "$2.00/h"
    assert "limits.budget" not in {item.statement for item in plan_of().binding}


def test_power_without_room_binds() -> None:
    """An L40S may draw 350 W."""
    traffic = CHAT.replace("4/s", "1/s")
    near, far = (plan_of(traffic=traffic, rest=f"limits: {{power: {watts}W}}") for watts in (360, 700))
    assert [item.used for item in near.binding if item.statement == "limits.power"] == ["0.35 kW"]
    assert not [item for item in far.binding if item.statement == "limits.power"]


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        ("cost", 43.2, "$43.20/h"),
        ("gpus", 1, "1 GPU"),
        ("gpus", 2.5, "2.5 GPUs"),
        ("energy", 543, "543 W"),
        ("energy", 8200, "8.2 kW"),
        ("carbon", 217, "217 g CO2/h"),
        ("traffic", 10.13, "10.13 x the traffic"),
        ("throughput", 2996, "2,996 output tokens/s"),
        ("goodput", 30, "30 requests/s"),
    ],
)
def test_values_are_told_in_the_unit_of_their_objective(quantity: str, value: float, text: str) -> None:
    assert amount(quantity, value) == text


def test_layouts_name_what_is_not_one() -> None:
    assert layout_words(Layout(tensor_parallel=2, pipeline_stages=(4,))) == "TP 2"
    wide = Layout(tensor_parallel=1, pipeline_stages=(2, 2), attention_data_parallel=8, expert_parallel=8)
    assert layout_words(wide) == "TP 1 PP 2 attention DP 8 EP 8"


def test_the_summary_states_value_bound_and_laws(plan: Plan) -> None:
    first, second, third = explain(plan).summary
    assert first.startswith("minimise cost: $2.00/h; no plan under this cost model is below $")
    assert f"{plan.certificate.simulations} simulations" in second
    checks = len(plan.certificate.checks)
    assert third.startswith(f"{checks} of {checks} laws hold")


def test_equal_plans_do_not_differ(plan: Plan) -> None:
    assert diff(plan, Plan.model_validate_json(plan.to_json())) == ()


def test_a_difference_is_named_with_both_sides() -> None:
    old, new = plan_of(), plan_of(rest="choices: {small: {replicas: 2}}")
    found = {(item.topic, item.what): (item.old, item.new) for item in diff(old, new)}
    replicas = [sides for (topic, what), sides in found.items() if topic == "decision" and what.endswith("replicas")]
    assert replicas == [("1", "2")]
    assert found["cost", "per hour"] == ("$1.00", "$2.00")
    assert found["certificate", "value"] == ("$1.00/h", "$2.00/h")
    topics = [item.topic for item in diff(old, new)]
    assert topics == sorted(topics, key=["decision", "cost", "prediction", "certificate", "spec"].index)


def test_what_only_one_side_has_is_none_on_the_other() -> None:
    old, new = plan_of(), plan_of(pools=(L40S.replace("name: l40s", "name: other"),))
    found = {item.what: (item.old, item.new) for item in diff(old, new)}
    assert found["nodes of l40s"] == ("1", None)
    assert found["nodes of other"] == (None, "1")
    backwards = {item.what: (item.new, item.old) for item in diff(new, old)}
    assert backwards == found


def test_what_no_load_could_serve_is_not_called_cheaper() -> None:
    """An L4 reads 16 GB of weights a step in over 50 ms: at a tenth of the price it still is no choice."""
    cheap = "{name: l4, device: l4, count: 8, gpus_per_node: 8, price: $0.1/h, rent: gpu}"
    made = plan_of(models="{small: meta-llama/Llama-3.1-8B}", pools=(cheap, H100))
    alone = [
        item
        for item in made.discarded
        if item.configuration.pool == "l4"
        and item.configuration.tensor_parallel == 1
        and item.configuration.role == "unified"
        and item.reason != "pipeline"
    ]
    assert alone
    for item in alone:
        assert item.reason == "slo"
        assert "even without any queue: broken chat: p90 TPOT" in item.detail
