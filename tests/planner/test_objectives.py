"""Plans for every objective, and plans that outlive failing nodes and interrupted machines, end to end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning import CHAT, H100, L40S, plan_of, problem_of, spec_of, text_of

from planner.decide import at_multiple, decided
from planner.optimize.certify import recheck
from planner.optimize.judging import Judging
from planner.optimize.whole_plan import WholePlan, admitted
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import pose
from specs.deployment import parse_deployment
from specs.errors import InputError, NoPlanError
from specs.plan import Plan

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
BUSY = CHAT.replace("4/s", "25/s")
NODES = "{name: nodes, device: l40s, count: 16, gpus_per_node: 4, price: $1/h, rent: node}"
TWO = BUSY + CHAT.replace("name: chat", "name: other").replace("4/s", "5/s")


def plan_for(objective: str, *, limits: str = "", extra: str = "", **parts: Any) -> Plan:
    rest = f"objective: {objective}\nchoices: {{disaggregation: never}}\n" + (f"limits: {limits}\n" if limits else "")
    chosen: dict[str, Any] = {"models": LLAMA, "pools": (L40S, H100), "traffic": BUSY, "rest": rest + extra}
    return plan_of(**(chosen | parts))


def changed(plan: Plan, path: str, value: Any) -> Plan:
    data = plan.model_dump(mode="json")
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = data
    for part in parents:
        place = place[part]
    place[last] = value
    return Plan.model_validate(data)


def broken(plan: Plan) -> set[str]:
    return {check.law for check in recheck(plan) if not check.holds}


@pytest.fixture(scope="module")
def energy() -> Plan:
    return plan_for("minimise energy")


@pytest.fixture(scope="module")
def goodput() -> Plan:
    return plan_for("maximise goodput", pools=(L40S.replace("count: 8", "count: 1"),))


@pytest.fixture(scope="module")
def survivor() -> Plan:
    return plan_for("minimise cost", pools=(NODES,), limits="{survive_node_failures: 1}")


def test_watts_are_those_of_the_groups_and_of_idle_devices(energy: Plan) -> None:
    certificate = energy.certificate
    assert certificate.value == pytest.approx(sum(group.power_w or 0.0 for group in energy.predictions.groups))
    assert certificate.bound <= certificate.priced_bound <= certificate.value
    assert broken(changed(energy, "certificate/value", certificate.value + 1)) == {
        "the certificate's value is that of the plan"
    }


def test_a_plan_for_energy_takes_no_more_watts_than_other_plans(energy: Plan) -> None:
    for objective in ("minimise cost", "minimise gpus"):
        assert energy.certificate.value <= plan_for(objective).cost.power_w * (1 + 1e-6)


def test_idle_devices_of_rented_nodes_count() -> None:
    plan = plan_for("minimise energy", pools=(NODES,))
    rented, working = plan.cost.gpus_rented, plan.cost.gpus
    idle_w = plan.devices["l40s"].idle_power_w
    assert rented >= 4
    assert plan.certificate.value == pytest.approx(plan.cost.power_w + idle_w * (rented - working))


def test_carbon_is_energy_times_the_intensity(energy: Plan) -> None:
    traffic = "  carbon: 400g/kWh\ntraffic:\n"
    text = text_of(
        models=LLAMA,
        pools=(L40S, H100),
        traffic=BUSY,
        rest="objective: minimise carbon\nchoices: {disaggregation: never}\n",
    )
    spec = parse_deployment(text.replace("traffic:\n", traffic, 1)).spec
    plan = make_plan(spec, Path(), version="test")
    assert plan.certificate.value == pytest.approx(0.4 * energy.certificate.value)
    assert plan.cost.grams_co2_per_hour == pytest.approx(plan.certificate.value)


def test_carbon_without_an_intensity_is_refused() -> None:
    with pytest.raises(InputError, match="carbon intensity"):
        pose(spec_of(rest="objective: minimise carbon"), Path())


def test_headroom_does_not_change_what_the_declared_traffic_draws() -> None:
    plan = plan_for("minimise energy", limits="{utilisation: 60%}")
    assert broken(plan) == set()
    assert plan.certificate.bound <= plan.certificate.value


def test_what_a_fleet_is_too_small_for_is_let_in_in_part(goodput: Plan) -> None:
    (share,) = goodput.admitted.values()
    assert 0.3 < share < 1.0
    (prediction,) = goodput.predictions.classes
    declared = goodput.certificate.worth["chat"]
    assert goodput.certificate.value == pytest.approx(share * declared)
    assert prediction.rate_per_s == pytest.approx(share * declared, rel=0.1)  # drawn
    assert goodput.certificate.bound >= goodput.certificate.priced_bound >= goodput.certificate.value
    assert goodput.certificate.gap == pytest.approx(1 - goodput.certificate.value / goodput.certificate.bound)
    assert "the bound is not below the value" in broken(changed(goodput, "certificate/bound", 0.1))
    assert "replicas carry chat" in broken(changed(goodput, "admitted/chat", 1.0))


def test_simulating_such_a_plan_lets_the_same_share_in(goodput: Plan) -> None:
    found = simulate_plan(goodput, Path())
    (prediction,) = goodput.predictions.classes
    assert found["simulated_requests"] == prediction.requests
    assert any("let in, as planned" in note for note in found["notes"])


def test_a_fleet_that_is_large_enough_serves_everything_at_least_cost() -> None:
    served, cheapest = plan_for("maximise throughput"), plan_for("minimise cost")
    assert served.admitted == {}
    assert served.cost.usd_per_hour == cheapest.cost.usd_per_hour
    assert served.certificate.gap == pytest.approx(0.0, abs=1e-6)


def test_of_two_classes_no_less_is_served_than_the_one_that_counts_more_alone() -> None:
    long = TWO.replace("output_tokens: 60", "output_tokens: 400", 1)  # chat has the more tokens
    scarce = (L40S.replace("count: 8", "count: 1"),)
    by_requests = plan_for("maximise goodput", pools=scarce, traffic=long)
    by_tokens = plan_for("maximise throughput", pools=scarce, traffic=long)
    assert by_requests.certificate.value >= by_requests.certificate.worth["other"] * 0.999  # all of it fits
    assert by_requests.certificate.value < sum(by_requests.certificate.worth.values())
    assert by_tokens.admitted["chat"] >= by_requests.admitted["chat"]


def test_a_class_of_which_nothing_is_let_in_has_no_routes_and_no_prediction() -> None:
    problem = problem_of(models=LLAMA, traffic=TWO)
    rest = admitted(problem.workload, {"chat": 0.0, "other": 0.5})
    assert rest.classes == ("other",)
    whole = int(problem.workload.of_class("other").sum())
    assert 0.4 * whole < len(rest) < 0.6 * whole
    assert admitted(problem.workload, {}) is problem.workload


def test_the_largest_multiple_is_carried_and_a_larger_one_is_not() -> None:
    pools = (H100.replace("count: 8", "count: 1"),)
    plan = plan_for("maximise traffic", pools=pools)
    multiple = plan.certificate.multiple
    assert plan.certificate.value == multiple > 1.0
    (prediction,) = plan.predictions.classes
    assert prediction.rate_per_s == pytest.approx(25 * multiple, rel=0.05)
    assert plan.spec["traffic"][0]["arrivals"]["rate_per_s"] == 25
    assert any("times the declared traffic" in note for note in plan.predictions.notes)
    assert plan.certificate.value <= plan.certificate.priced_bound <= plan.certificate.bound
    more = CHAT.replace("4/s", f"{25 * plan.certificate.bound * 1.02:g}/s")
    with pytest.raises(NoPlanError):
        plan_for("minimise cost", pools=pools, traffic=more)


def test_a_fleet_too_small_for_the_traffic_carries_a_part_of_it() -> None:
    plan = plan_for("maximise traffic", pools=(L40S.replace("count: 8", "count: 1"),))
    assert 0.3 < plan.certificate.value < 1.0


def test_traffic_is_drawn_anew_at_its_multiple() -> None:
    problem = problem_of(models=LLAMA, traffic=BUSY)
    twice = at_multiple(problem, 2.0)
    rate = len(problem.declared) / problem.declared.horizon_s
    assert len(twice.declared) / twice.declared.horizon_s == pytest.approx(2 * rate, rel=0.05)
    assert twice.families is problem.families


def test_without_any_configuration_there_is_no_multiple() -> None:
    problem = problem_of(traffic=CHAT.replace("50ms", "1us"), rest="objective: maximise traffic")
    assert decided(problem).decision is None


def test_power_is_counted_at_what_devices_may_draw() -> None:
    free, limited = plan_for("minimise cost"), plan_for("minimise cost", limits="{power: 700W}")
    assert sum(group.layout.gpus * group.replicas for group in limited.groups) * 350 <= 700
    assert limited.certificate.value >= free.certificate.value
    assert "limits.power" in broken(changed(limited, "spec/limits/power_w", 349.0))


def test_a_plan_outlives_its_most_loaded_node(survivor: Plan) -> None:
    nodes = {slot.node for group in survivor.groups for replica in group.placement for slot in replica.slots}
    assert len(nodes) >= 2
    law = "replicas carry chat when any 1 node fail"
    assert law in {check.law for check in survivor.certificate.checks}
    assert law in broken(crowded(survivor))
    assert any("held when simulated without" in note for note in survivor.predictions.notes)


def crowded(plan: Plan) -> Plan:
    """All replicas as if they stood on node 0."""
    data = plan.model_dump(mode="json")
    for group in data["groups"]:
        for replica in group["placement"]:
            for slot in replica["slots"]:
                slot["node"] = 0
    return Plan.model_validate(data)


def test_outliving_failures_costs_more_and_more_of_them_still_more(survivor: Plan) -> None:
    plain = plan_for("minimise cost", pools=(NODES,))
    two = plan_for("minimise cost", pools=(NODES,), limits="{survive_node_failures: 2}")
    assert plain.certificate.value < survivor.certificate.value < two.certificate.value


def test_a_fleet_of_one_node_outlives_nothing() -> None:
    problem = problem_of(
        models=LLAMA, pools=(H100,), traffic=BUSY, rest="objective: minimise cost\nlimits: {survive_node_failures: 1}"
    )
    assert problem.master().decide() is None


def test_a_plan_that_breaks_without_a_node_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the programme knew nothing of failures, simulation without the node says what breaks."""
    problem = problem_of(models=LLAMA, pools=(NODES,), traffic=BUSY)
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    judging = Judging(
        replace(master.template, survive=1), master.pricer, problem.spec.hardware, None, lambda text: None
    )
    whole = WholePlan(decision.bought, decision.routes, decision.placement, problem.spec.hardware)
    assert any("without nodes node 0" in text for text in judging.judgement(whole, {}).broken)


def test_a_plan_whose_placement_leaves_too_little_without_a_node_is_refuted() -> None:
    """What replicas were priced at has to carry every class, even where simulation sees nothing amiss."""
    rest = "objective: minimise cost\nlimits: {survive_node_failures: 1}"
    problem = problem_of(models=LLAMA, pools=(NODES,), traffic=BUSY, rest=rest)
    master = problem.master()
    decision = master.decide()
    assert decision is not None
    blind = replace(master.pricer, slos={})
    judging = Judging(master.template, blind, problem.spec.hardware, None, lambda text: None)
    whole = WholePlan(decision.bought, decision.routes, decision.placement, problem.spec.hardware)
    assert judging.judgement(whole, {}).broken == ()
    for item in decision.bought:
        item.column.factor *= 0.1
    (text,) = judging.judgement(whole, {}).broken
    assert re.fullmatch(r"chat: replicas carry \d+\.\d% of it without nodes node \d", text)


SPOT = L40S.replace("rent: gpu", "rent: gpu, spot: {discount: 50%, interruptions: 0.5/h, recovery: 15min}")


def test_spot_machines_are_paid_at_their_discount_and_count_for_their_availability() -> None:
    problem = problem_of(models=LLAMA, pools=(SPOT, H100), traffic=BUSY)
    pool = problem.template.pools[0]
    assert (pool.price, pool.availability) == (0.5, pytest.approx(1 / 1.125))
    plan = plan_for("minimise cost", pools=(SPOT,))
    used = sum(group.layout.gpus * group.replicas for group in plan.groups)
    assert plan.cost.usd_per_hour == pytest.approx(0.5 * used)
    assert any("spot replicas count for the 88.9%" in note for note in plan.predictions.notes)
    assert broken(plan) == set()


def test_interruptions_are_drawn_and_simulated() -> None:
    problem = problem_of(models=LLAMA, pools=(SPOT.replace("0.5/h", "30/h"),), traffic=BUSY)
    decision = problem_of(models=LLAMA, pools=(L40S,), traffic=BUSY).master().decide()
    assert decision is not None
    whole = WholePlan(decision.bought, decision.routes, decision.placement, problem.spec.hardware)
    faults = whole.interruptions(600.0)
    assert faults == whole.interruptions(600.0)
    assert {fault.until_s - fault.from_s for fault in faults} == {900.0}
    master = problem.master()
    judged = Judging(master.template, master.pricer, problem.spec.hardware, None, lambda text: None)
    assert any("interrupted" in text for text in judged.judgement(whole, {}).broken)
