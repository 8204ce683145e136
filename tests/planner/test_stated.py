"""Deployments as they stand: what they do is what simulation says of the same plan; what they break is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planning import CHAT, L40S, plan_of, spec_of, text_of

import specs
from planner.answers.embedded import problem_of
from planner.diff import diff
from planner.explain import explain
from planner.optimize.certify import recheck
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.problem import pose
from planner.schedule.make import make_schedule
from planner.simulate import meets, slos_of
from planner.stated.anatomy import group_phases
from planner.stated.document import StatedPlan
from planner.stated.estimate import estimate
from planner.stated.replicas import choices_of
from planner.stated.routing import stated_routes
from specs.deployment import load_deployment
from specs.errors import InputError, NoPlanError
from specs.plan import Plan

EXAMPLES = Path(specs.__file__).parent / "examples"
H100 = "{name: h100, device: h100-sxm, count: 16, gpus_per_node: 8, price: $3/h, rent: gpu}"
POOLS = (L40S, H100)
SMALL = "{pool: l40s, replicas: 2, name: old}"
LARGE = "{pool: h100, replicas: 1, name: new}"
BATCH = """  - name: batch
    model: small
    arrivals: 1/s
    prompt_tokens: 900
    output_tokens: 40
    shared_prefix: {tokens: 400, groups: 3}
    slo: {ttft: 2s, e2e: 20s, attainment: 90%}
"""


def stated_text(*groups: str, rest: str = "objective: minimise cost", **parts: object) -> str:
    listed = "".join(f"      - {group}\n" for group in groups)
    written = {"pools": POOLS, "rest": f"{rest}\nchoices:\n  small:\n    groups:\n{listed}", **parts}
    return text_of(**written)  # type: ignore[arg-type]


def stated(*groups: str, **parts: object) -> StatedPlan:
    from specs.deployment import parse_deployment

    return estimate(parse_deployment(stated_text(*groups, **parts)).spec, Path(), version="test")


def figures(plan: Plan) -> list[tuple[object, ...]]:
    return [(item.request_class, item.ttft_s, item.tpot_s, item.e2e_s) for item in plan.predictions.classes]


def reached(plan: Plan) -> dict[str, float]:
    return {load.group: load.utilisation for load in plan.predictions.groups}


def assert_simulated_alike(plan: Plan) -> None:
    """`capstan simulate` finds the percentiles and loads that the plan predicts."""
    again = simulate_plan(plan, Path())
    classes = {found["class"]: found for found in again["classes"]}
    for item in plan.predictions.classes:
        found = classes[item.request_class]
        for metric, values in (("ttft_s", item.ttft_s), ("tpot_s", item.tpot_s), ("e2e_s", item.e2e_s)):
            assert {rank: found[metric][rank] for rank in ("p50", "p99")} == {r: values[r] for r in ("p50", "p99")}
    for load in plan.predictions.groups:
        (found,) = (item for item in again["groups"] if item["group"] == load.group)
        assert found["output_tokens_per_s"] == load.output_tokens_per_s


ACROSS = "{name: both, replicas: 2, stage_pools: [l40s, h100], pipeline_stages: [10, 18]}"
UNLIKE = {
    "two engines": (SMALL, LARGE.replace("name", "engine: sglang, name")),
    "releases": (SMALL.replace("name", "engine_version: 0.12.0, name"), LARGE),
    "uneven stages": (SMALL.replace("name", "pipeline_stages: [20, 8], name"), LARGE),
    "tight memory": (SMALL.replace("name", "memory_fraction: 50%, kv_cache: fp8, name"), LARGE),
    "limits": (SMALL.replace("name", "max_num_seqs: 700, max_num_batched_tokens: 20000, name"), LARGE),
    "over pools": (ACROSS.replace("name", "engine_version: 0.12.0, host_kv_cache: 8GB, name"), LARGE),
    "apart": (
        SMALL,
        "{name: pre, pool: h100, role: prefill, replicas: 1, serves: chat}",
        "{name: dec, pool: h100, role: decode, replicas: 2}",
    ),
}


@pytest.mark.parametrize("groups", UNLIKE.values(), ids=UNLIKE)
def test_what_a_deployment_does_is_what_its_plan_does_when_it_is_simulated(groups):
    found = stated(*groups, traffic=CHAT + BATCH)
    assert_simulated_alike(found.plan)
    assert found.plan.certificate.checks == recheck(found.plan)


def test_drafts_and_the_host_tier_are_simulated_alike():
    model = "{small: {architecture: Qwen/Qwen3-0.6B, speculative: {method: ngram, acceptance: 60%, max_draft: 4}}}"
    groups = SMALL.replace("name", "draft_tokens: 3, name"), LARGE.replace("name", "host_kv_cache: 4GB, name")
    found = stated(*groups, models=model, traffic=CHAT + BATCH, rest="objective: minimise cost")
    old, new = found.plan.groups
    assert old.scheduling.speculation is not None
    assert (old.scheduling.speculation.draft_tokens, old.cache.host_blocks) == (3, 0)
    block_bytes = new.cache.memory.kv_bytes_per_token * new.cache.block_size_tokens
    assert new.cache.host_blocks == int(4e9 / block_bytes)
    assert_simulated_alike(found.plan)


def test_a_planned_deployment_written_as_a_group_does_the_same():
    plan = plan_of(pools=POOLS)
    (group,) = plan.groups
    written = (
        f"{{pool: {group.pool}, replicas: {group.replicas}, tensor_parallel: {group.layout.tensor_parallel}, "
        f"max_num_seqs: {group.limits.max_num_seqs}, max_num_batched_tokens: {group.limits.max_num_batched_tokens}, "
        f"prefix_caching: false}}"
    )
    found = stated(written)
    for ours, theirs in zip(found.plan.predictions.classes, plan.predictions.classes, strict=True):
        assert ours.e2e_s == pytest.approx(theirs.e2e_s, rel=1e-4)  # tables of steps reach as far as the limits
        assert ours.attainment == theirs.attainment
    assert found.plan.cost.usd_per_hour == plan.cost.usd_per_hour
    assert not found.broken


def test_unlike_groups_take_unlike_load_and_are_equally_busy():
    found = stated(SMALL, LARGE)
    shares = {route.group: route.share for route in found.plan.routes}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["new"] > shares["old"] > 0
    busy = reached(found.plan)
    assert busy["old"] == pytest.approx(busy["new"], rel=0.15)  # what each request takes differs a little by group


def test_stated_shares_are_kept_and_leave_the_rest_by_the_room_that_is_left():
    problem = pose(spec_of_groups(SMALL.replace("name", "serves: {batch: 100%}, name"), LARGE, LARGE_TWO), Path())
    loads = {("old", "batch"): 1.0, ("new", "chat"): 2.0, ("two", "chat"): 1.0}

    def load(item: object, name: str) -> float:
        return loads[item.group.name, name]  # type: ignore[attr-defined]

    routes = stated_routes(problem.stated, (("chat", "small"), ("batch", "small")), load, lambda index: f"g{index}")
    assert [(route.request_class, route.group, round(route.share, 9)) for route in routes] == [
        ("chat", "g1", round(1 / 5, 9)),  # one replica of a half beside two of one each
        ("chat", "g2", round(4 / 5, 9)),
        ("batch", "g0", 1.0),
    ]
    loads |= {("new", "batch"): 0.5}
    sharing = pose(
        spec_of_groups(LARGE.replace("name", "serves: {batch: 100%, chat: 0.0001%}, name"), LARGE_TWO), Path()
    )
    first, *_ = stated_routes(sharing.stated, (("chat", "small"), ("batch", "small")), load, lambda index: f"g{index}")
    assert first.share == pytest.approx(1e-6)


LARGE_TWO = "{pool: h100, replicas: 2, name: two}"


def spec_of_groups(*groups: str, **parts: object):
    from specs.deployment import parse_deployment

    return parse_deployment(stated_text(*groups, **({"traffic": CHAT + BATCH} | parts))).spec


def test_a_group_that_is_busy_with_stated_requests_gets_less_of_the_rest():
    free = stated(LARGE, LARGE_TWO.replace("2", "1"), traffic=CHAT + BATCH)
    taken = stated(
        LARGE.replace("name", "serves: {batch: 100%, chat: 50%}, name"),
        LARGE_TWO.replace("2", "1"),
        traffic=CHAT + BATCH,
    )
    assert [route.share for route in free.plan.routes] == pytest.approx([0.5] * 4)
    assert {(route.request_class, route.group, route.share) for route in taken.plan.routes} == {
        ("chat", "new", 0.5), ("chat", "two", 0.5), ("batch", "new", 1.0),
    }  # fmt: skip


def test_an_older_release_is_slower():
    now, before = (stated(SMALL.replace("name", f"{words}name")) for words in ("", "engine_version: 0.12.0, "))
    assert before.plan.groups[0].engine_version == "0.12.0"
    assert before.plan.predictions.classes[0].tpot_s["p50"] > 1.05 * now.plan.predictions.classes[0].tpot_s["p50"]


def test_defaults_are_those_of_the_engine_and_are_said():
    (group,) = stated(SMALL.replace("name", "engine: sglang, name")).plan.groups
    found = stated(SMALL.replace("name", "engine: sglang, name")).plan
    profile = found.engines["sglang"]
    assert group.limits.max_num_seqs == profile.default_max_num_seqs
    assert group.limits.max_num_batched_tokens == profile.default_max_num_batched_tokens
    assert group.cache.prefix_caching
    assert any("max_num_seqs 256" in note and "not stated" in note for note in found.predictions.notes)


def test_nodes_are_where_they_are_stated():
    found = stated(
        LARGE.replace("name", "nodes: [1], tensor_parallel: 4, name"), SMALL.replace("name", "nodes: 1, name")
    )
    placed = {group.id: {slot.node for item in group.placement for slot in item.slots} for group in found.plan.groups}
    assert placed == {"new": {1}, "old": {1}}
    with pytest.raises(InputError, match=r"2 of 3 replicas of 4 devices find room in nodes 0 of h100") as raised:
        stated(LARGE.replace("1, name", "3, nodes: [0], tensor_parallel: 4, name"))
    assert raised.value.field == "choices.small.groups[0].nodes"


def test_prefill_groups_hand_over_to_the_decode_group_they_name():
    found = stated(
        "{name: p0, pool: h100, role: prefill, replicas: 1, hands_over_to: d0}",
        "{name: p1, pool: h100, role: prefill, replicas: 2, hands_over_to: d1}",
        "{name: d0, pool: h100, role: decode, replicas: 1}",
        "{name: d1, pool: h100, role: decode, replicas: 2}",
    )
    plan = found.plan
    assert [group.hands_over_to for group in plan.groups] == ["d0", "d1", None, None]
    loads = {load.group: load.output_tokens_per_s for load in plan.predictions.groups}
    assert loads["d1"] == pytest.approx(2 * loads["d0"], rel=0.1)  # p1 has twice the replicas, and so the requests
    assert_simulated_alike(plan)
    assert all(check.holds for check in plan.certificate.checks)


REFUSED = [
    ("{pool: l40s, replicas: 1, tensor_parallel: 3}", "groups[0]", "cannot run (heads)"),
    ("{pool: l40s, replicas: 1, pipeline_stages: [20, 9]}", "groups[0].pipeline_stages", "20 + 9 layers are 29"),
    ("{pool: l40s, replicas: 1, max_num_seqs: 64, max_num_batched_tokens: 32}", "groups[0].max_num_batched_tokens",
     "32 tokens a step do not reach"),
    ("{pool: l40s, replicas: 1, engine: sglang, host_kv_cache: 10GB}", "groups[0].host_kv_cache",
     "keeps no KV blocks in host memory"),
    ("{pool: l40s, replicas: 1, engine: trtllm, order: priority}", "groups[0].order", "first come, first served"),
    ("{pool: l40s, replicas: 1, engine: capstan, attention_data_parallel: 2}", "groups[0].attention_data_parallel",
     "does not share out"),
    ("{pool: l40s, replicas: 1, attention_data_parallel: 2}", "groups[0].attention_data_parallel", "has no experts"),
    ("{pool: l40s, replicas: 1, tensor_parallel: 2, expert_parallel: 2}", "groups[0].expert_parallel", "no experts"),
    ("{pool: l40s, replicas: 1, max_context: 100}", "groups[0].max_context", "100 tokens are fewer than"),
    ("{pool: l40s, replicas: 1, max_context: 9999999}", "groups[0].max_context", "was trained for"),
    ("{pool: l40s, replicas: 1, max_num_batched_tokens: 10M}", "groups[0].max_num_batched_tokens", "absurdly many"),
    ("{pool: l40s, replicas: 1, memory_fraction: 4%}", "groups[0]", "cannot run (memory)"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "field", "words"), REFUSED)
def test_what_cannot_stand_is_refused_by_group(group, field, words):
    with pytest.raises(InputError) as raised:
        stated(group)
    assert words in raised.value.message
    assert raised.value.field == f"choices.small.{field}"


def test_memory_that_does_not_fit_is_said_with_the_bytes():
    with pytest.raises(InputError, match=r"weights take 65\.\d GB of 4\d\.\d GB a device") as raised:
        stated("{pool: l40s, replicas: 1}", models="{small: Qwen/Qwen3-32B}")
    assert raised.value.field == "choices.small.groups[0]"


TIGHT = CHAT.replace("p90: 50ms", "p90: 1ms")


def test_broken_promises_are_said_and_estimated_all_the_same():
    found = stated(SMALL, traffic=TIGHT)
    assert [text.split(" (met")[0] for text in found.broken] == ["chat: p90 TPOT <= 0.001 s"]
    assert not next(c for c in found.plan.certificate.checks if "TPOT" in c.law).holds
    assert found.plan.predictions.classes[0].attainment == 0.0  # simulated to the end, not to the first limit
    assert sum(load.output_tokens_per_s for load in found.plan.predictions.groups) > 200
    with pytest.raises(NoPlanError, match="capstan estimate") as raised:
        make_plan(spec_of_groups(SMALL, traffic=TIGHT), Path())
    assert raised.value.conflict == found.broken


def test_a_deployment_that_keeps_every_promise_is_the_plan_of_its_spec():
    assert make_plan(spec_of_groups(SMALL, LARGE), Path()) == estimate(spec_of_groups(SMALL, LARGE), Path()).plan


def test_limits_on_the_whole_are_judged():
    found = stated(SMALL, LARGE, rest="objective: minimise cost\nlimits: {budget: $4/h, gpus: {small: 2}}")
    assert found.broken == ("limits.budget: 5 of at most 4", "limits.gpus.small: 3 of at most 2")


def test_headroom_is_judged_at_its_multiple_of_the_traffic_and_predicted_without():
    reached_s = stated(SMALL).plan.predictions.classes[0].tpot_s["p90"]
    traffic = CHAT.replace("p90: 50ms", f"p90: {1.02e3 * reached_s:.3f}ms")
    plain = stated(SMALL, traffic=traffic)
    found = stated(SMALL, traffic=traffic, rest="objective: minimise cost\nlimits: {utilisation: 25%}")
    assert not plain.broken
    assert found.broken[0].endswith("at 4 times the traffic (limits.utilisation)")
    assert figures(found.plan) == figures(plain.plan)


def test_without_a_failed_node_classes_stay_with_the_groups_that_take_them():
    groups = (
        LARGE_TWO.replace("name", "nodes: [0], serves: chat, name"),
        LARGE_TWO.replace("two", "three").replace("name", "nodes: [1], serves: {chat: 20%}, name"),
        SMALL.replace("name", "serves: batch, name"),
    )
    whole = stated(*groups, traffic=CHAT + BATCH).standing.whole
    rest = whole.without(frozenset({("h100", 0)}))
    assert [item.column.family.key.rpartition("/")[2] for item in rest.bought] == ["three", "old"]
    assert {(route.request_class, route.group, route.share) for route in rest.routes} == {
        ("chat", "group-0", 1.0), ("batch", "group-1", 1.0),
    }  # fmt: skip
    found = stated(*groups, traffic=CHAT + BATCH, rest="objective: minimise cost\nlimits: {survive_node_failures: 1}")
    assert found.broken == ("batch: nothing serves it without l40s node 0",)
    assert found.slack.multiple is None  # more traffic is not what breaks it
    assert "none as it stands" in found.slack.text


def test_the_certificate_claims_no_search():
    found = stated(SMALL, LARGE)
    certificate = found.plan.certificate
    assert (certificate.solver_status, certificate.solver, certificate.columns) == ("stated", "none", 2)
    assert certificate.is_stated
    assert (certificate.value, certificate.bound) == (5.0, 1.0)  # one l40s would do, if nothing ever queued
    assert all(group.carries == {} for group in found.plan.groups)  # nothing was priced
    assert any("stated, not searched" in line for line in explain(found.plan).summary)


def test_nothing_is_proven_of_a_deployment_that_cannot_carry_its_traffic():
    found = stated(SMALL, models="{small: Qwen/Qwen3-8B}", traffic=CHAT.replace("4/s", "80/s"))
    assert found.plan.certificate.bound == 0.0
    assert any("even if nothing ever queued" in note for note in found.plan.predictions.notes)
    assert found.broken
    assert found.slack.multiple is not None
    assert found.slack.multiple < 0.8
    assert found.mends == (f"traffic: {found.slack.multiple:.2f} times as much",)


def test_slack_is_the_largest_multiple_that_keeps_every_promise():
    found = stated("{pool: l40s, replicas: 1}", traffic=CHAT.replace("p90: 50ms", "p90: 3.7ms"))
    problem, whole, multiple = found.standing.problem, found.standing.whole, found.slack.multiple
    assert multiple is not None
    assert 1.0 < multiple < 4.0

    def held(times: float) -> bool:
        workload = problem.declared.faster(times)
        return meets(whole.simulate(workload, None), workload, slos_of(problem.spec)).holds

    assert held(multiple)
    assert not held(multiple * 1.02)


def test_where_the_time_of_a_group_goes_adds_up_to_what_was_simulated():
    found = stated(*UNLIKE["apart"], traffic=CHAT + BATCH)
    result = found.standing.decision.result
    phases = [[phase.name for phase in group_phases(found.standing, index)] for index in range(3)]
    assert phases == [["first token", "further token"], ["first token"], ["further token"]]
    for index, names in enumerate(phases):
        for phase in group_phases(found.standing, index):
            values = (result.ttft_s if phase.name == "first token" else result.tpot_s)[result.had(index)]
            assert phase.total_s == pytest.approx(np.nanmean(values))
            assert -0.1 * phase.total_s < phase.rest_s < 0.8 * phase.total_s, names
            assert {"engine", "gemm", "attention"} <= {part.kind for part in phase.parts}


def test_a_group_that_drafts_is_not_taken_apart():
    model = "{small: {architecture: Qwen/Qwen3-0.6B, speculative: {method: ngram, acceptance: 60%, max_draft: 4}}}"
    found = stated(SMALL.replace("name", "draft_tokens: 3, name"), models=model)
    with pytest.raises(InputError, match="old drafts"):
        group_phases(found.standing, 0)


def test_interruptions_of_spot_machines_are_judged_and_no_note_says_otherwise():
    pool = H100.replace("price", "spot: {discount: 50%, interruptions: 30/h, recovery: 60s}, price")
    alone = stated("{pool: h100, replicas: 1}", pools=(pool,))
    assert alone.broken == ("chat: p90 TTFT <= 1 s, with spot machines interrupted",)
    assert not any("every promise held" in note for note in alone.plan.predictions.notes)


def test_a_plan_that_is_edited_away_from_what_is_stated_breaks_a_law():
    plan = stated(SMALL, LARGE).plan
    edited = plan.groups[0].model_copy(update={"engine_version": "0.1"})
    plan.spec["choices"]["models"]["small"]["groups"][0]["engine_version"] = "0.2"
    for changed, broken in (
        (plan.groups[0], "old stands as it is stated"),
        (edited, "old stands as it is stated"),
        (edited.model_copy(update={"engine_version": "0.2"}), None),
        (edited.model_copy(update={"id": "young"}), "all of them are in the plan, and no others"),
    ):
        checks = recheck(plan.model_copy(update={"groups": (changed, *plan.groups[1:])}))
        found = [check.law.partition(": ")[2] for check in checks if not check.holds and "groups: " in check.law]
        assert found == ([] if broken is None else [broken])


def test_replicas_whose_stages_stand_in_several_pools_are_estimated_too():
    wired = "objective: minimise cost\nlimits: {budget: $100/h}"
    found = stated(ACROSS, LARGE, rest=wired)
    group, cost = found.plan.groups[0], found.plan.cost
    assert [(machine.pool, machine.device) for machine in group.stages] == [("l40s", "l40s"), ("h100", "h100-sxm")]
    assert group.layout.pipeline_stages == (10, 18)
    assert (cost.gpus, cost.usd_per_hour) == (5, 2 * 1.0 + 3 * 3.0)
    assert all(check.holds for check in found.plan.certificate.checks)
    assert_simulated_alike(found.plan)
    with pytest.raises(InputError, match="several pools"):
        group_phases(found.standing, 0)
    uneven = stated(ACROSS.replace("[10, 18]", "[18, 10]"), LARGE, rest=wired)  # more on the slower device
    slower, faster = (item.plan.predictions.classes[0].e2e_s["p99"] for item in (uneven, found))
    assert slower > faster


def test_what_cannot_span_pools_is_refused():
    with pytest.raises(InputError, match=r"cannot run \(engine\): sglang is not known to run"):
        stated(ACROSS.replace("name", "engine: sglang, name"))


def test_other_questions_are_refused_by_name():
    found = stated(SMALL)
    with pytest.raises(InputError, match="all replicas of small are stated"):
        problem_of(found.plan, Path())
    day = CHAT.replace("arrivals: 4/s", "arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5}")
    with pytest.raises(InputError, match="a schedule looks for other plans"):
        make_schedule(spec_of_groups(SMALL, traffic=day), Path())


def test_groups_that_are_alike_in_all_but_their_share_are_told_apart():
    first, second = SMALL.replace("2", "1"), SMALL.replace("2", "1").replace("old", "other")
    taking = first.replace("name", "serves: {chat: 30%}, name")
    found = diff(stated(taking, second).plan, stated(taking.replace("30%", "40%"), second).plan)
    shares = {item.what.rpartition(" ")[2]: (item.old, item.new) for item in found if item.what.startswith("route")}
    assert shares == {"(old)": ("30.0%", "40.0%"), "(other)": ("70.0%", "60.0%")}


def test_a_model_whose_pins_leave_one_configuration_is_estimated():
    spec = load_deployment(EXAMPLES / "existing-deployment.yaml")
    found = estimate(spec, EXAMPLES)
    plan = make_plan(spec, EXAMPLES)
    assert figures(found.plan) == figures(plan)
    assert found.plan.cost == plan.cost
    assert found.plan.groups[0].id == "chat"


def test_what_is_left_to_the_planner_is_named():
    with pytest.raises(InputError) as raised:
        estimate(spec_of(pools=POOLS, rest="choices: {small: {tensor_parallel: [1, 2], replicas: 2}}"), Path())
    for name in ("tensor_parallel", "pipeline_parallel", "max_num_seqs", "max_num_batched_tokens", "pool"):
        assert f"choices.small.{name}" in raised.value.message
    assert "choices.small.replicas" not in raised.value.message
    mixture = spec_of(models="{small: Qwen/Qwen3-30B-A3B}", rest="objective: minimise cost")
    with pytest.raises(InputError, match=r"choices\.small\.expert_parallel"):
        estimate(mixture, Path())


def test_the_example_says_what_it_says():
    found = estimate(load_deployment(EXAMPLES / "uneven-fleet.yaml"), EXAMPLES)
    assert not found.broken
    plan = found.plan
    assert [(group.id, group.engine, group.replicas) for group in plan.groups] == [
        ("old", "vllm", 4), ("batch", "vllm", 1), ("new", "sglang", 2),
    ]  # fmt: skip
    assert plan.groups[1].layout.pipeline_stages == (34, 30)
    assert plan.cost.usd_per_hour == pytest.approx(52.0)
    shares = {(route.request_class, route.group): route.share for route in plan.routes}
    assert shares["conversation", "new"] == pytest.approx(0.6)
    assert shares["conversation", "old"] == pytest.approx(0.4)
    assert plan.predictions.classes[0].tpot_s["p90"] == pytest.approx(0.036, rel=0.2)
    assert found.slack.multiple is not None
    assert 1.2 < found.slack.multiple < 3.0


def test_step_times_reach_no_further_than_the_limits():
    (item,) = pose(spec_of_groups(SMALL, traffic=CHAT), Path()).stated
    limits = item.variant.limits
    assert choices_of(limits).max_num_seqs == (limits.max_num_seqs,)
    assert len(item.family.times.tokens_s) == limits.max_num_batched_tokens + 1


OVER = CHAT.replace("4/s", "120/s")  # one L40S serves a part of it in time


@pytest.mark.parametrize("quantity", ["goodput", "throughput"])
def test_the_value_of_a_broken_deployment_is_what_it_serves_within_limits(quantity):
    one = SMALL.replace("replicas: 2", "replicas: 1")
    found = stated(one, traffic=OVER, rest=f"objective: maximise {quantity}")
    certificate, (chat,) = found.plan.certificate, found.plan.predictions.classes
    assert found.broken
    offered = chat.rate_per_s * (1 if quantity == "goodput" else 60)
    assert certificate.value == pytest.approx(chat.attainment * offered, rel=1e-6)
    assert certificate.value < 0.9 * offered
    assert certificate.gap == pytest.approx(1 - certificate.value / certificate.bound)
    assert all(check.holds for check in certificate.checks if "value" in check.law)
    kept = stated(one, rest=f"objective: maximise {quantity}").plan
    (few,) = kept.predictions.classes
    assert kept.certificate.value == pytest.approx(few.rate_per_s * offered / chat.rate_per_s)
    assert kept.certificate.gap == pytest.approx(0.0, abs=1e-9)


def test_of_a_class_without_limits_counts_what_ends_inside_the_window():
    one = SMALL.replace("replicas: 2", "replicas: 1")
    text = "".join(line + "\n" for line in OVER.replace("120/s", "400/s").splitlines() if "slo" not in line)
    plan = stated(one, traffic=text, rest="objective: maximise goodput").plan
    (chat,) = plan.predictions.classes
    (load,) = plan.predictions.groups
    assert plan.certificate.value < 0.8 * chat.rate_per_s
    assert plan.certificate.value == pytest.approx(load.output_tokens_per_s / 60, rel=0.05)


def test_a_growing_queue_is_not_said_to_break_nothing_beside_what_it_broke():
    one = SMALL.replace("replicas: 2", "replicas: 1")
    late = stated(one, traffic=OVER.replace("120/s", "400/s"))
    assert late.broken
    (note,) = [note for note in late.plan.predictions.notes if "the queue grows" in note]
    assert note.endswith("wait for a first token")
    loose = stated(one, traffic=OVER.replace("120/s", "400/s").replace("{p90: 1s}", "{p90: 1h}").replace("50ms", "9s"))
    (note,) = [note for note in loose.plan.predictions.notes if "the queue grows" in note]
    assert note.endswith("(no limit on latency is broken by that)")
