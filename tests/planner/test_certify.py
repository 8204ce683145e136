"""The re-check from the document alone: a good plan keeps every law, and every law has a plan that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from planning import H100, plan_of

from planner.optimize.certify import recheck
from specs.plan import DeviceSlot, Plan, ReplicaPlacement

TRAFFIC = """  - name: chat
    model: small
    arrivals: 4/s
    prompt_tokens: 500
    output_tokens: 60
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
  - name: joint
    model: tiny
    arrivals: 2/s
    prompt_tokens: 300
    output_tokens: 40
    slo: {ttft: 1s, e2e: 10s, attainment: 95%}
"""
REST = """objective: minimise cost
limits: {budget: $60/h, gpus: {small: 8}, utilisation: 80%}
choices:
  small: {tensor_parallel: [2], replicas: [2, 3], max_num_seqs: 64, max_num_batched_tokens: 2048, pool: nodes}
  tiny: {tensor_parallel: 1, pipeline_parallel: 1, pool: singles}
"""
MODELS = "{small: {architecture: Qwen/Qwen3-0.6B, weights: bf16, kv_cache: bf16}, tiny: Qwen/Qwen3-1.7B}"
POOLS = (
    "{name: nodes, device: l40s, count: 8, gpus_per_node: 4, price: $1/h, rent: node}",
    H100.replace("name: h100", "name: singles"),
)


@pytest.fixture(scope="module")
def good() -> Plan:
    return plan_of(models=MODELS, pools=POOLS, traffic=TRAFFIC, rest=REST)


def changed(plan: Plan, path: str, value: Any) -> Plan:
    """The document with one field replaced; `path` such as `groups.0.replicas`. A function is given the old value."""
    data = plan.model_dump(mode="json")
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = data
    for part in parents:
        place = place[part]
    place[last] = value(place[last]) if callable(value) else value
    return Plan.model_validate(data)


def broken(plan: Plan) -> set[str]:
    return {check.law for check in recheck(plan) if not check.holds}


def test_a_plan_that_was_given_out_keeps_every_law(good: Plan) -> None:
    assert broken(good) == set()
    assert good.certificate.checks == recheck(good)
    assert len(good.certificate.checks) > 40


def with_slots(replica: int, *slots: tuple[int, int]) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        placement = list(plan.groups[0].placement)
        placement[replica] = ReplicaPlacement(slots=tuple(DeviceSlot(node=n, device=d) for n, d in slots))
        group = plan.groups[0].model_copy(update={"placement": tuple(placement)})
        return plan.model_copy(update={"groups": (group, *plan.groups[1:])})

    return change


MUTATIONS: list[tuple[str, Any, str]] = [
    ("routes/0/share", 0.9, "the shares of chat add up"),
    ("routes/0/group", "group-1", "chat goes to replicas of its own model only"),
    ("spec/hardware/pools/0/count", 2, "nodes: devices used are in stock"),
    ("", with_slots(0, (0, 2), (0, 3)), "nodes: no device is used twice"),
    ("", with_slots(0, (0, 0), (0, 4)), "nodes: devices exist in their node"),
    ("", with_slots(0, (7, 0), (7, 1)), "nodes: nodes used are in stock"),
    ("", with_slots(0, (1, 0), (1, 1)), "nodes: nodes used are rented"),
    ("cost/nodes/nodes", 3, "nodes: nodes rented are in stock"),
    ("groups/0/replicas", 3, "group-0: every replica is placed"),
    ("groups/0/placement", [], "group-0: every replica is placed"),
    ("", with_slots(0, (0, 0)), "group-0: replicas have all their ranks"),
    ("", with_slots(0, (0, 0), (1, 1)), "group-0: tensor-parallel ranks share a node"),
    ("groups/0/cache/memory/weights_bytes", lambda old: old + 10**12, "group-0: the parts of memory fit"),
    (
        "groups/0/cache/memory/weights_bytes",
        lambda old: int(0.98 * old),
        "group-0: weights of a device are those of the architecture, to 1%",
    ),
    ("groups/0/device", "h100-sxm", "group-0: its device is that of its pool"),
    ("groups/0/cache/memory/available_bytes", lambda old: 2 * old, "group-0: available memory is on the device"),
    ("groups/0/cache/num_blocks", lambda old: 2 * old, "group-0: KV blocks fit their memory"),
    ("groups/0/limits/max_model_len", 10**9, "group-0: the longest request fits the cache"),
    ("groups/0/limits/max_num_seqs", 4096, "group-0: the token budget reaches all sequences"),
    ("groups/0/layout/pipeline_stages", [27], "group-0: pipeline stages hold every layer"),
    ("groups/0/layout/tensor_parallel", 3, "group-0: tensor parallelism divides the heads"),
    ("groups/0/weights_dtype", "fp8", "weights of group-0 is declared"),
    ("groups/0/cache/kv_dtype", "fp8", "kv_cache of group-0 is declared"),
    ("groups/0/engine", "sglang", "engine of group-0 is declared"),
    ("groups/0/pool", "nowhere", "pool of group-0 is declared"),
    ("spec/limits/budget_usd_per_hour", 0.5, "limits.budget"),
    ("spec/limits/gpus/small", 3, "limits.gpus.small"),
    ("predictions/groups/0/utilisation", 0.81, "limits.utilisation (group-0)"),
    ("spec/choices/models/small/replicas", [1, 3], "choices.small.replicas are kept"),
    ("spec/choices/models/small/tensor_parallel", [1, 4], "choices.small.tensor_parallel is kept by group-0"),
    ("spec/choices/models/tiny/pipeline_parallel", [2], "choices.tiny.pipeline_parallel is kept by group-1"),
    ("groups/0/limits/max_num_seqs", 128, "choices.small.max_num_seqs is kept by group-0"),
    ("groups/0/limits/max_num_batched_tokens", 4096, "choices.small.max_num_batched_tokens is kept by group-0"),
    ("spec/choices/models/tiny/pool", ["nodes"], "choices.tiny.pool is kept by group-1"),
    ("cost/gpus_rented", 4, "devices rented add up"),
    ("cost/nodes", {}, "nodes: nodes used are rented"),
    ("cost/usd_per_hour", lambda old: old - 1, "the hourly cost adds up"),
    ("certificate/value", lambda old: old - 1, "the certificate's value is that of the plan"),
    ("predictions/classes/0/ttft_s/p90", 1.01, "chat: p90 TTFT (simulated)"),
    ("predictions/classes/0/ttft_s", {}, "chat: p90 TTFT (simulated)"),
    ("predictions/classes/0/tpot_s/p90", 0.0501, "chat: p90 TPOT (simulated)"),
    ("predictions/classes/1/attainment", 0.949, "joint: joint attainment (simulated)"),
    ("predictions/classes", [], "chat: is predicted"),
    ("certificate/fresh/limits/0/verdict", "broken", "limits refuted on fresh seeds"),
    ("groups/0/carries/chat", 0.1, "replicas carry chat"),
    ("certificate/bound", lambda old: old + 100, "the bound is not above the value"),
]


@pytest.mark.parametrize(("path", "change", "law"), MUTATIONS, ids=[f"{law}-{path}" for path, _, law in MUTATIONS])
def test_a_plan_that_breaks_a_law_is_caught_by_it(good: Plan, path: str, change: Any, law: str) -> None:
    bad = changed(good, path, change) if path else change(good)
    assert law in broken(bad)


def test_every_law_has_a_mutation(good: Plan) -> None:
    names = {"group-1": "group-0", "singles": "nodes", "choices.tiny": "choices.small", "joint: is": "chat: is"}
    names |= {"shares of joint": "shares of chat", "joint goes": "chat goes", "carry joint": "carry chat"}

    def normal(law: str) -> str:
        for old, new in names.items():
            law = law.replace(old, new)
        return law

    assert {normal(check.law) for check in recheck(good)} == {normal(law) for _, _, law in MUTATIONS}


def test_a_class_of_one_token_answers_has_no_tpot_to_break() -> None:
    traffic = TRAFFIC[: TRAFFIC.index("  - name: joint")].replace("output_tokens: 60", "output_tokens: 1")
    plan = plan_of(traffic=traffic)
    assert plan.predictions.classes[0].tpot_s == {}
    assert broken(plan) == set()


def with_memory(plan: Plan, stages: tuple[int, ...], weights_bytes: int) -> Plan:
    layout = plan.groups[0].layout.model_copy(update={"pipeline_stages": stages})
    memory = plan.groups[0].cache.memory.model_copy(update={"weights_bytes": weights_bytes})
    cache = plan.groups[0].cache.model_copy(update={"memory": memory})
    group = plan.groups[0].model_copy(update={"layout": layout, "cache": cache})
    return plan.model_copy(update={"groups": (group, *plan.groups[1:])})


@pytest.mark.parametrize("stage", [0, 1])
def test_weights_are_those_of_a_pipeline_stage_with_its_own_copy_of_a_tied_table(good: Plan, stage: int) -> None:
    """Qwen3-0.6B in bf16 over two ranks: 28 layers of 15.7 M parameters, and a table of 151,936 x 1024 at both ends."""
    law = "group-0: weights of a device are those of the architecture, to 1%"
    layers, table = 15_730_432, 151_936 * 1024  # from the published shapes; norms are whole on every rank
    expected = ((20, 8)[stage] * layers + table) // 2 * 2
    assert law not in broken(with_memory(good, (20, 8), expected))
    assert law in broken(with_memory(good, (20, 8), int(expected * 1.03)))
    assert law in broken(with_memory(good, (20, 7), expected))  # no such cut of 28 layers


def test_a_config_that_is_no_model_breaks_the_law_of_weights(good: Plan) -> None:
    law = "group-0: weights of a device are those of the architecture, to 1%"
    assert law in broken(changed(good, "architectures/small", {"model_type": "llama"}))
