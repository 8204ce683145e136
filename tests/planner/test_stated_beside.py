"""Models whose replicas are stated, and others that are planned on the nodes that are left."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning import spec_of

from planner.optimize.certify import recheck
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from specs.deployment import DeploymentSpec
from specs.errors import InputError, NoPlanError
from specs.plan import Plan

POOLS = (
    "{name: l40s, device: l40s, count: 12, gpus_per_node: 4, price: $1/h, rent: gpu}",
    "{name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $3/h, rent: node}",
)
TRAFFIC = """  - {name: talk, model: small, arrivals: 3/s, prompt_tokens: 500, output_tokens: 9, slo: {ttft: {p90: 1s}}}
  - {name: edit, model: code, arrivals: 3/s, prompt_tokens: 700, output_tokens: 40, slo: {tpot: {p90: 50ms}}}
"""
OLD = "{name: old, pool: l40s, nodes: [1], replicas: 2}"
NEW = "{name: new, pool: h100, nodes: [0], replicas: 1, serves: {talk: 30%}}"


def beside(*groups: str, rest: str = "objective: minimise cost", traffic: str = TRAFFIC) -> DeploymentSpec:
    listed = "".join(f"      - {group}\n" for group in groups)
    return spec_of(
        models="{small: Qwen/Qwen3-0.6B, code: Qwen/Qwen3-1.7B}",
        pools=POOLS,
        traffic=traffic,
        rest=f"{rest}\nchoices:\n  small:\n    groups:\n{listed}",
    )


def planned(*groups: str, **parts: str) -> Plan:
    return make_plan(beside(*groups, **parts), Path(), version="test")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(OLD, NEW)


def test_what_is_stated_stands_and_the_rest_is_chosen_on_other_nodes(plan):
    assert [(group.id, group.model) for group in plan.groups] == [
        ("old", "small"), ("new", "small"), ("group-0", "code"),
    ]  # fmt: skip
    nodes = [
        {(group.pool, slot.node) for replica in group.placement for slot in replica.slots} for group in plan.groups
    ]
    assert nodes[:2] == [{("l40s", 1)}, {("h100", 0)}]
    assert not nodes[2] & (nodes[0] | nodes[1])
    assert all(check.holds for check in recheck(plan))
    assert plan.certificate.checks == recheck(plan)


def test_its_value_and_its_bound_hold_what_the_stated_groups_take(plan):
    alone = make_plan(
        spec_of(
            models="{code: Qwen/Qwen3-1.7B}",
            pools=POOLS,
            traffic=TRAFFIC.splitlines()[1] + "\n",
            rest="objective: minimise cost",
        ),
        Path(),
    )
    stands = 2 * 1.0 + 8 * 3.0  # two devices, one whole node
    assert plan.certificate.value == pytest.approx(stands + alone.certificate.value)
    assert plan.certificate.bound == pytest.approx(stands + alone.certificate.bound)
    assert plan.certificate.bound <= plan.certificate.value
    assert not plan.certificate.is_stated
    assert any("only the others were chosen" in note for note in plan.predictions.notes)


def test_it_is_simulated_as_it_is_predicted(plan):
    again = {item["class"]: item for item in simulate_plan(plan, Path())["classes"]}
    for item in plan.predictions.classes:
        assert again[item.request_class]["e2e_s"]["p99"] == item.e2e_s["p99"]


def test_a_stated_group_that_is_called_as_chosen_ones_are_keeps_its_name():
    found = planned(OLD.replace("old", "group-0"))
    assert [group.id for group in found.groups] == ["group-0", "group-1"]
    assert {route.group for route in found.routes if route.request_class == "edit"} == {"group-1"}


def test_headroom_is_kept_by_all():
    found = planned(OLD, rest="objective: minimise cost\nlimits: {utilisation: 80%}")
    assert all(check.holds for check in found.certificate.checks)


@pytest.mark.parametrize(
    ("groups", "parts", "words"),
    [
        ((OLD,), {"rest": "objective: minimise cost\nlimits: {budget: $2/h}"}, "take 2 of limits.budget: 2"),
        ((OLD,), {"rest": "objective: minimise cost\nlimits: {power: 600W}"}, "of limits.power: 600"),
        ((OLD,), {"traffic": TRAFFIC.replace("ttft: {p90: 1s}", "ttft: {p90: 1ms}")}, "do not keep every promise"),
        ((OLD,), {"traffic": TRAFFIC.replace("50ms", "0.1ms")}, "beside the stated groups"),
        (
            ("{name: a, pool: l40s, replicas: 3, tensor_parallel: 4}",
             "{name: b, pool: h100, replicas: 2, tensor_parallel: 8}"), {}, "on every node of every pool",
        ),
    ],
)  # fmt: skip
def test_where_nothing_serves_the_rest_that_is_said(groups, parts, words):
    with pytest.raises(NoPlanError) as raised:
        planned(*groups, **parts)
    assert words in raised.value.message


def test_what_is_not_planned_in_parts_is_refused_by_name():
    with pytest.raises(InputError, match="only some models are stated") as raised:
        planned(OLD, rest="objective: minimise energy")
    assert raised.value.field == "objective"
