"""Plans that serve prompts and tokens apart: where that wins, where it does not, and that they keep every law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import plan_of, problem_of

from planner.candidates.disaggregated import PROMPTS, priced_fleet, role_families, whole_fleet
from planner.cost.bound import optimistic_work_s, role_floors, role_work_s
from planner.diff import diff
from planner.group_power import group_power_w
from planner.optimize import master as module
from planner.optimize import pruned
from planner.optimize.certify import recheck
from planner.optimize.master import Bought, Master
from planner.optimize.programme import Column, OptimisticFamily
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import Problem
from planner.simulate import FleetGroup, Workload, simulate_fleet
from specs.catalog import load_power
from specs.errors import InputError
from specs.plan import Plan, Route

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
LARGE = "{small: meta-llama/Llama-3.1-70B}"
H100 = "{name: h100, device: h100-sxm, count: 8, gpus_per_node: 8, price: $3/h, rent: gpu}"
NODES = "{name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $3/h, rent: gpu}"
A100 = "{name: a100, device: a100-sxm, count: 16, gpus_per_node: 8, price: $1.6/h, rent: gpu}"
LONG_PROMPTS = """  - name: chat
    model: small
    arrivals: 12/s
    prompt_tokens: 3000
    output_tokens: 200
    slo: {ttft: {p90: 2s}, tpot: {p90: 12ms}}
"""
LOOSE = LONG_PROMPTS.replace("12/s", "3/s").replace("3000", "500").replace("12ms", "100ms")
UNLIKE = LONG_PROMPTS.replace("12/s", "3/s").replace("12ms", "40ms")


def choosing(choice: str, **parts: Any) -> Plan:
    return plan_of(
        **({"models": LLAMA, "pools": (H100,), "traffic": LONG_PROMPTS} | parts),
        rest=f"objective: minimise cost\nchoices: {{disaggregation: {choice}}}",
    )


@pytest.fixture(scope="module")
def apart() -> Plan:
    """Long prompts and a tight limit per token: chunks of prompts would hold tokens up."""
    return choosing("auto")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(models=LLAMA, pools=(H100,), traffic=LONG_PROMPTS)


def roles(plan: Plan) -> set[str]:
    return {group.role for group in plan.groups}


def test_long_prompts_under_a_tight_limit_per_token_are_served_apart(apart: Plan) -> None:
    together = choosing("never")
    assert roles(together) == {"unified"}
    assert roles(apart) == {"prefill", "decode"}
    assert apart.certificate.value < together.certificate.value
    assert apart.certificate.bound <= apart.certificate.priced_bound <= apart.certificate.value
    assert apart.certificate.bound <= together.certificate.bound  # of more configurations
    (prefill,) = [group for group in apart.groups if group.role == "prefill"]
    (decode,) = [group for group in apart.groups if group.role == "decode"]
    assert prefill.hands_over_to == decode.id
    assert {route.group for route in apart.routes} == {prefill.id}
    assert [check for check in recheck(apart) if not check.holds] == []


def test_unlike_pools_take_the_side_that_each_is_cheap_for() -> None:
    """As in Splitwise: with both devices to choose from, a split plan is cheaper than any that serves together."""
    together, free = (
        choosing(choice, models=LARGE, pools=(NODES, A100), traffic=UNLIKE) for choice in ("never", "auto")
    )
    assert free.certificate.value < 0.9 * together.certificate.value
    assert {group.pool for group in free.groups} == {"h100", "a100"}
    (decode,) = [group for group in free.groups if group.role == "decode"]
    assert all(group.hands_over_to == decode.id for group in free.groups if group.role == "prefill")


def test_small_traffic_with_loose_limits_is_served_together() -> None:
    free, forced = choosing("auto", traffic=LOOSE), choosing("always", traffic=LOOSE)
    assert roles(free) == {"unified"}
    assert roles(forced) == {"prefill", "decode"}
    assert free.certificate.value < forced.certificate.value
    assert choosing("never", traffic=LOOSE).groups == free.groups


def test_equal_declarations_give_equal_bytes(apart: Plan) -> None:
    assert choosing("auto").model_dump_json() == apart.model_dump_json()


def test_the_document_simulates_to_what_planning_predicted(apart: Plan) -> None:
    """Links, roles and step times follow from the plan alone: same figures, to rounding of the document."""
    found = simulate_plan(apart, Path())
    (served,), (predicted,) = found["classes"], apart.predictions.classes
    for table, other in ((served["ttft_s"], predicted.ttft_s), (served["tpot_s"], predicted.tpot_s)):
        assert {rank: other[rank] for rank in ("p50", "p90")} == pytest.approx({r: table[r] for r in ("p50", "p90")})
    assert found["energy"]["power_w"] == pytest.approx(apart.cost.power_w)
    assert len(found["links"]) == 1


def test_every_group_has_its_own_load(apart: Plan) -> None:
    loads = {load.group: load for load in apart.predictions.groups}
    prefill, decode = (next(group for group in apart.groups if group.role == role) for role in ("prefill", "decode"))
    assert loads[prefill.id].prompt_tokens_per_s > 30_000
    assert loads[decode.id].prompt_tokens_per_s == 0
    assert loads[decode.id].output_tokens_per_s > 100 * loads[prefill.id].output_tokens_per_s
    for load in loads.values():
        assert 0.05 < load.utilisation <= load.busy <= 1.0
        assert load.power_w is not None
        assert load.power_w > 70.0
    assert apart.cost.power_w == pytest.approx(sum(load.power_w or 0.0 for load in loads.values()))


def test_nothing_of_the_work_is_lost_or_counted_twice(problem: Problem) -> None:
    load = problem.declared
    for family in problem.families:
        prompts, outputs = load.prompt_tokens, load.output_tokens
        whole = optimistic_work_s(family.times, prompts, outputs)
        first, rest = (role_work_s(role, family.times, prompts, outputs) for role in ("prefill", "decode"))
        assert first + rest == pytest.approx(whole)
        assert first > 0
        assert rest > 0
        # one token is all prefill
        assert role_work_s("decode", family.times, prompts, np.ones_like(outputs)) == pytest.approx(0.0)
        floors = role_floors("decode", family.times, prompts, outputs)
        assert not floors.ttft_s.any()
        assert not role_floors("prefill", family.times, prompts, outputs).tpot_s.any()


def test_a_side_is_priced_at_no_more_than_its_bound(problem: Problem) -> None:
    master = problem.master()
    for family in problem.role_families:
        (bracket,) = master.open(family)
        while not bracket.closed:
            master.pricer.narrow(bracket)
        assert 0 < bracket.lower <= 1.0 / bracket.load


def test_a_decode_side_is_priced_behind_a_free_one_and_its_own_ports(problem: Problem) -> None:
    """A request alone: no time to its first token, then its transfer, then the steps of its other tokens."""
    (family,) = [f for f in problem.role_families if f.options.role == "decode" and f.layout.tensor_parallel == 1]
    variant = problem.master().pricer.first_limits(family, ("chat",))
    assert variant is not None
    alone = Workload(("chat",), np.zeros(1, np.int64), np.zeros(1), np.array([3000]), np.array([11]), window_s=100.0)
    fleet = priced_fleet(variant, 2, alone)
    routes = (Route(request_class="chat", group=PROMPTS, share=1.0),)
    result = simulate_fleet(fleet.groups, routes, fleet.workload, links=fleet.links)
    assert result.ttft_s[0] < 1e-6
    (link,) = fleet.links.values()
    token_bytes = 32 * 2 * 8 * 128 * 2
    assert link.bytes_per_s == pytest.approx(2 * 0.85 * 450e9)  # both replicas' ports
    transfer_s = 3000 * token_bytes / (0.85 * 450e9) + 10e-6
    steps_s = sum(family.times.step_s(1, 1, 1, 1, 3000 + index, 0, ()) for index in range(1, 11))
    assert result.e2e_s[0] == pytest.approx(transfer_s + steps_s, rel=1e-3)


def test_power_of_two_sides_is_that_of_their_parts(problem: Problem) -> None:
    """What a prefill side draws is what it would for requests of one token: no watt for tokens made elsewhere."""
    sides = {f.options.role: f for f in problem.role_families if f.layout.tensor_parallel == 2}
    pricer = problem.master().pricer
    load = problem.declared.select(np.arange(len(problem.declared)) < 600)
    prefill = pricer.first_limits(sides["prefill"], ("chat",))
    decode = pricer.first_limits(sides["decode"], ("chat",))
    assert prefill is not None
    assert decode is not None
    fleet = priced_fleet(decode, 2, load)
    groups = (replace(fleet.groups[0], model=prefill.replica), fleet.groups[1])
    routes = (Route(request_class="chat", group=PROMPTS, share=1.0),)
    result = simulate_fleet(groups, routes, load, links=fleet.links)
    one = replace(load, output_tokens=np.ones_like(load.output_tokens))
    single = simulate_fleet(
        (FleetGroup("p", 1, prefill.replica),), (Route(request_class="chat", group="p", share=1.0),), one
    )

    def watts(found: Any, requests: Workload, group: int, family: Any) -> float:
        facts = (
            family.architecture,
            family.layout,
            family.weights_dtype,
            family.kv_dtype,
            family.device,
            family.profile,
        )
        return group_power_w(found, requests, group, *facts, power)

    power = load_power("h100-sxm")
    assert watts(result, load, 0, sides["prefill"]) == pytest.approx(watts(single, one, 0, sides["prefill"]), rel=0.01)
    idle = 2 * 2 * sides["decode"].device.idle_power_w
    assert idle < watts(result, load, 1, sides["decode"]) < 2 * 2 * 700


@pytest.mark.parametrize(
    ("pools", "crossings"),
    [
        ((H100,), {"h100": {"node"}}),
        ((NODES,), {"h100": {"network"}}),
        ((H100, A100), {"h100": {"network", "node"}, "a100": {"network"}}),
        (("{name: h100, device: h100-sxm, count: 1, gpus_per_node: 1, price: $3/h, rent: gpu}",), {}),
    ],
)
def test_caches_cross_where_there_is_a_way(pools: tuple[str, ...], crossings: dict[str, set[str]]) -> None:
    found: dict[str, set[str]] = {}
    problem = problem_of(models=LLAMA, pools=pools, traffic=LOOSE)
    for family in problem.role_families:
        found.setdefault(family.pool.name, set()).add(family.options.crossing)
    assert found == crossings
    assert len({family.key for family in problem.role_families}) == len(problem.role_families)


def test_sides_that_cannot_talk_are_of_unlike_channels() -> None:
    problem = problem_of(
        models="{small: {architecture: meta-llama/Llama-3.1-8B, kv_cache: [bf16, fp8]}}",
        pools=(H100, A100),
        traffic=LOOSE,
    )
    channels = {family.channel for family in problem.role_families}
    assert {"vllm/bf16/network", "vllm/fp8/network", "vllm/bf16/h100", "vllm/fp8/h100"} >= channels
    assert {"vllm/bf16/network", "vllm/bf16/h100"} <= channels
    assert {family.channel for family in problem.families} == {""}


def test_stages_take_no_role(problem: Problem) -> None:
    staged = [replace(f, layout=f.layout.model_copy(update={"pipeline_stages": (16, 16)})) for f in problem.families]
    assert role_families(staged, problem.spec.hardware) == []


def test_an_engine_that_hands_nothing_over_takes_no_role() -> None:
    compiled = problem_of(
        models=LLAMA, pools=(H100,), traffic=LOOSE, rest="objective: minimise cost\nchoices: {engine: capstan}"
    )
    assert compiled.families
    assert compiled.role_families == ()


def test_always_without_a_link_is_refused_by_name() -> None:
    lonely = "{name: h100, device: h100-sxm, count: 1, gpus_per_node: 1, price: $3/h, rent: gpu}"
    with pytest.raises(InputError, match="cannot be served apart: no link") as caught:
        choosing("always", pools=(lonely,), traffic=LOOSE)
    assert caught.value.field == "choices.disaggregation"


def test_late_first_tokens_take_load_from_prefill_sides_only(problem: Problem) -> None:
    """A decode side that shrank for what the other side did would cost a replica."""
    master = problem.master()
    for family in problem.role_families:
        for bracket in master.open(family):
            while not bracket.closed:
                master.pricer.narrow(bracket)
    bought = tuple(Bought(bracket, 1) for bracket in master.brackets.values())

    def left(text: str) -> dict[str, set[bool]]:
        before = {key: bracket.factor for key, bracket in master.brackets.items()}
        master._shrink(bought, (text,))
        found: dict[str, set[bool]] = {}
        for key, bracket in master.brackets.items():
            found.setdefault(bracket.family.options.role, set()).add(bracket.factor < before[key])
        return found

    assert left("chat: p90 TTFT <= 1 s (met by 80.0%)") == {"prefill": {True}, "decode": {False}}
    assert left("chat: p90 TPOT <= 0.012 s (met by 80.0%)") == {"prefill": {False}, "decode": {True}}
    assert left("chat: p90 E2E <= 1 s (met by 80.0%)") == {"prefill": {True}, "decode": {True}}


def test_a_search_whose_split_plans_are_refuted_goes_on_without_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Master._judged

    def refuting(self: Master, bought: tuple[Bought, ...], *rest: Any) -> Any:
        judged = true(self, bought, *rest)
        apart = any(item.role != "unified" for item in bought)
        return replace(judged, broken=("chat: p90 TPOT <= 0.012 s (met by 80.0%)",)) if apart else judged

    monkeypatch.setattr(Master, "_judged", refuting)
    monkeypatch.setattr(module, "MOST_REFUTED_APART", 1)
    plan = choosing("auto")
    assert roles(plan) == {"unified"}
    assert module.GIVEN_UP_APART in plan.predictions.notes


def column(key: str, share: float, role: Any = "decode", channel: str = "a", gpus: int = 1) -> Column:
    return Column(key, "m", "p", gpus, (("chat", share),), role=role, channel=channel)


def test_of_columns_on_the_same_devices_the_better_one_is_left() -> None:
    columns = (
        column("a", 0.4),
        column("b", 0.5),
        column("c", 0.3, channel="b"),
        column("d", 0.3, role="prefill"),
        column("e", 0.1, gpus=2),
        column("f", 0.2, role="unified", channel=""),
        column("g", 0.1, role="unified", channel=""),
    )
    assert [item.key for item in pruned.undominated(columns)] == ["b", "c", "d", "e", "f"]


def test_of_optimistic_sides_the_least_loaded_is_asked_for_first() -> None:
    def family(key: str, *loads: float, role: Any = "prefill", misses: float = 0.0) -> OptimisticFamily:
        named = tuple(zip(("chat", "code"), loads, strict=True))
        late = (("chat", misses),) if misses else ()
        return OptimisticFamily(key, "m", "p", 1, named, late, role=role, channel="a")

    families = (
        family("worse", 2.0, 2.0),
        family("best", 1.0, 1.0, misses=0.1),
        family("late", 1.0, 1.5, misses=0.2),
        family("never late", 1.5, 1.5),
        family("other class", 3.0, 0.5),
        family("together", 9.0, 9.0, role="unified"),
    )
    left = [item.key for item in pruned.least_loaded(families)]
    assert left == ["best", "never late", "other class", "together"]


def broken(plan: Plan, change: Callable[[dict[str, Any]], None]) -> set[str]:
    """Laws that a changed plan breaks."""
    document = plan.model_dump(mode="json")
    change(document)
    return {check.law for check in recheck(Plan.model_validate(document)) if not check.holds}


def test_the_re_check_sees_sides_that_do_not_fit(apart: Plan) -> None:
    prefill = next(i for i, group in enumerate(apart.groups) if group.role == "prefill")
    sender, taker = apart.groups[prefill].id, apart.groups[1 - prefill].id

    def no_target(document: dict[str, Any]) -> None:
        document["groups"][prefill]["hands_over_to"] = None

    def arrivals(document: dict[str, Any]) -> None:
        document["routes"][0]["group"] = taker

    def other_cache(document: dict[str, Any]) -> None:
        document["groups"][prefill]["cache"]["kv_dtype"] = "fp8"

    def never(document: dict[str, Any]) -> None:
        document["spec"]["choices"]["disaggregation"] = "never"

    assert f"{sender}: hands over to a decode group of its model" in broken(apart, no_target)
    assert f"{taker}: some group hands over to it" in broken(apart, no_target)
    assert f"{taker}: no class arrives at it" in broken(apart, arrivals)
    assert f"{sender}: both sides keep one type of KV cache" in broken(apart, other_cache)
    assert "choices.disaggregation (never) is kept" in broken(apart, never)


def test_plans_together_and_apart_differ_in_words(apart: Plan) -> None:
    found = {item.what for item in diff(choosing("never"), apart)}
    assert any("prefill on h100" in what and "hands over to" in what for what in found)


def test_a_whole_fleet_without_roles_has_no_links(problem: Problem) -> None:
    assert whole_fleet((), (), problem.declared, problem.spec.hardware) == ((), {})
