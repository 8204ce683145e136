"""From a tiny spec to a plan: deterministic, as pinned, with headroom, and the same when simulated step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import CHAT, H100, L40S, plan_of, problem_of, spec_of, text_of

from planner.optimize.certify import recheck
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from specs.deployment import parse_deployment
from specs.errors import InputError
from specs.plan import Plan

LLAMA = "{small: {architecture: meta-llama/Llama-3.1-8B, weights: [bf16, fp8]}}"
BUSY = CHAT.replace("4/s", "25/s")
TWO_CLASSES = (
    CHAT.replace("4/s", "10/s").replace("50ms", "20ms")
    + """  - name: batch
    model: small
    arrivals: 1/s
    prompt_tokens: {uniform: [2k, 6k]}
    output_tokens: 100
    slo: {e2e: {p95: 20s}}
"""
)
TWO_MODELS = CHAT + TWO_CLASSES[len(CHAT.replace("4/s", "10/s")) :].replace("model: small", "model: other")
NODE = "{name: nodes, device: l40s, count: 8, gpus_per_node: 4, price: $1/h, rent: node}"

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama": {"models": LLAMA, "pools": (L40S, H100), "traffic": BUSY},
    "classes": {"traffic": TWO_CLASSES},
    "models": {"models": "{small: Qwen/Qwen3-0.6B, other: Qwen/Qwen3-1.7B}", "pools": (NODE,), "traffic": TWO_MODELS},
    "node": {"models": LLAMA, "pools": (NODE,), "traffic": BUSY},
    "gpus": {"models": LLAMA, "pools": (L40S, H100), "traffic": BUSY, "rest": "objective: minimise gpus"},
    "headroom": {"models": LLAMA, "traffic": BUSY, "rest": "limits: {utilisation: 60%}"},
    "joint": {
        "traffic": CHAT.replace("{ttft: {p90: 1s}, tpot: {p90: 50ms}}", "{ttft: 500ms, e2e: 2s, attainment: 95%}")
    },
    "no slo": {"models": LLAMA, "traffic": BUSY[: BUSY.index("    slo")]},
    "partial": {"pools": ("{name: some, device: l40s, count: 3, gpus_per_node: 8}",), "rest": ""},
}


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {name: plan_of(**parts) for name, parts in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_keeps_every_law_and_its_value_is_not_below_the_bound(plans: dict[str, Plan], name: str) -> None:
    plan = plans[name]
    certificate = plan.certificate
    assert all(check.holds for check in recheck(plan))
    assert certificate.solver_status == "optimal"
    assert certificate.bound <= certificate.priced_bound + 1e-6 <= certificate.value + 2e-6
    assert certificate.gap == pytest.approx((certificate.value - certificate.bound) / certificate.value)


@pytest.mark.parametrize("name", CASES)
def test_the_step_by_step_oracle_agrees_and_keeps_every_objective(plans: dict[str, Plan], name: str) -> None:
    plan = plans[name]
    fast, exact = simulate_plan(plan, "."), simulate_plan(plan, ".", exact=True)
    assert fast["verdict"]["holds"], fast["verdict"]
    for one, other, predicted in zip(fast["classes"], exact["classes"], plan.predictions.classes, strict=True):
        for metric in ("ttft_s", "tpot_s", "e2e_s"):
            assert one[metric] == pytest.approx(other[metric], rel=1e-9)
            stored = getattr(predicted, metric)
            assert {key: stored.get(key) for key in one[metric]} == pytest.approx(one[metric], rel=1e-9)
    assert [g["preemptions"] for g in fast["groups"]] == [g["preemptions"] for g in exact["groups"]]


@pytest.mark.parametrize("name", ["llama", "classes", "models"])
def test_the_same_spec_gives_the_same_bytes(plans: dict[str, Plan], name: str) -> None:
    again = plan_of(**CASES[name])
    assert again.to_json() == plans[name].to_json()


def test_a_plan_survives_its_own_file(plans: dict[str, Plan], tmp_path: Path) -> None:
    plans["llama"].write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plans["llama"]


def test_the_seed_is_another_draw() -> None:
    assert plan_of(seed=1).predictions != plan_of(seed=2).predictions


PINS = [
    ("tensor_parallel: 2", lambda group: group.layout.tensor_parallel == 2),
    ("pipeline_parallel: 2", lambda group: group.layout.pipeline_parallel == 2),
    ("replicas: 3", lambda group: group.replicas == 3),
    ("max_num_seqs: 48", lambda group: group.limits.max_num_seqs == 48),
    ("max_num_batched_tokens: 768", lambda group: group.limits.max_num_batched_tokens == 768),
    ("max_num_batched_tokens: 128", lambda group: group.limits.max_num_batched_tokens == 128),
    ("max_num_seqs: 20000", lambda group: group.limits.max_num_seqs == 20000),
    ("pool: h100", lambda group: group.pool == "h100"),
]


@pytest.mark.parametrize(("pin", "kept"), PINS, ids=[pin for pin, _ in PINS])
def test_a_pin_is_honoured(pin: str, kept: Any) -> None:
    plan = plan_of(pools=(L40S, H100), rest=f"choices: {{small: {{{pin}}}}}")
    assert [kept(group) for group in plan.groups] == [True]


def test_a_list_of_replicas_is_a_choice_among_these_numbers() -> None:
    plan = plan_of(models=LLAMA, traffic=CHAT.replace("4/s", "45/s"), rest="choices: {small: {replicas: [1, 6]}}")
    assert sum(group.replicas for group in plan.groups) in (1, 6)


def test_headroom_carries_so_much_more_traffic() -> None:
    tight = {"models": LLAMA, "traffic": BUSY}
    without, half = plan_of(**tight), plan_of(**tight, rest="limits: {utilisation: 50%}")
    assert half.certificate.value > without.certificate.value
    # the same requests, compressed: twice the declared rate holds every objective
    problem = problem_of(**tight, rest="limits: {utilisation: 50%}")
    assert problem.workload.horizon_s == pytest.approx(problem.declared.horizon_s / 2)
    assert simulate_plan(half, ".", rate_per_s=2 * 25 * 0.95)["verdict"]["holds"]
    assert not simulate_plan(without, ".", rate_per_s=2 * 25)["verdict"]["holds"]


def test_whole_nodes_are_billed_where_they_are_rented_so(plans: dict[str, Plan]) -> None:
    plan = plans["node"]
    assert plan.cost.gpus_rented == 4 * plan.cost.nodes["nodes"]
    assert plan.cost.usd_per_hour == plan.cost.gpus_rented * 1.0
    single = plans["llama"]
    assert single.cost.gpus_rented == single.cost.gpus


def test_fewest_gpus_and_least_cost_are_different_plans(plans: dict[str, Plan]) -> None:
    cheap, few = plans["llama"], plans["gpus"]
    assert cheap.cost.usd_per_hour is not None
    assert few.cost.usd_per_hour is not None
    assert few.cost.gpus_rented < cheap.cost.gpus_rented
    assert few.cost.usd_per_hour > cheap.cost.usd_per_hour
    assert few.certificate.value == few.cost.gpus_rented


def test_two_models_share_a_node(plans: dict[str, Plan]) -> None:
    plan = plans["models"]
    assert {group.model for group in plan.groups} == {"small", "other"}
    assert plan.cost.nodes == {"nodes": 1}
    assert {route.request_class: plan.group(route.group).model for route in plan.routes} == {
        "chat": "small",
        "batch": "other",
    }


def test_two_classes_keep_their_own_objectives(plans: dict[str, Plan]) -> None:
    chat, batch = plans["classes"].predictions.classes
    assert chat.tpot_s["p90"] <= 0.020
    assert batch.e2e_s["p95"] <= 20.0
    assert batch.requests > 400


def test_a_class_without_limits_is_bought_by_its_work_alone(plans: dict[str, Plan]) -> None:
    plan = plans["no slo"]
    assert plan.certificate.gap == 0.0
    assert all(group.utilisation <= 1.0 for group in plan.predictions.groups)
    assert plan.predictions.classes[0].attainment == 1.0


def test_more_traffic_never_costs_less() -> None:
    values = [plan_of(models=LLAMA, traffic=CHAT.replace("4/s", f"{rate}/s")).certificate.value for rate in (4, 16, 40)]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_what_is_planned_and_when_is_told() -> None:
    told: list[str] = []
    make_plan(spec_of(), Path(), progress=told.append)
    assert told[0] == "reading models, devices and traffic"
    assert any("simulating" in text for text in told)


TRACE = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i * 0.25:.2f},{200 + i % 7},{20}\n" for i in range(400))


@pytest.fixture
def traced(tmp_path: Path) -> tuple[Plan, Path]:
    """A plan made with a trace in one folder, and that folder."""
    folder = tmp_path / "spec"
    folder.mkdir()
    (folder / "t.csv").write_text(TRACE)
    traffic = "  - {name: chat, model: small, trace: {file: t.csv, rate: 4/s}, slo: {ttft: {p90: 1s}}}\n"
    spec = parse_deployment(text_of(traffic=traffic)).spec
    return make_plan(spec, folder), folder


def test_a_trace_is_found_where_the_plan_says_or_beside_the_plan(traced: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = traced
    first = simulate_plan(plan, tmp_path)
    assert first["simulated_requests"] == 400
    (tmp_path / "t.csv").write_bytes((folder / "t.csv").read_bytes())
    (folder / "t.csv").unlink()
    assert simulate_plan(plan, tmp_path)["classes"] == first["classes"]


def test_a_missing_trace_is_an_error_that_says_where_it_was_looked_for(
    traced: tuple[Plan, Path], tmp_path: Path
) -> None:
    plan, folder = traced
    (folder / "t.csv").unlink()
    with pytest.raises(InputError, match=r"trace t\.csv is neither in .*spec nor beside the plan"):
        simulate_plan(plan, tmp_path)


def test_another_file_under_the_same_name_is_refused(traced: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = traced
    (folder / "t.csv").write_text(TRACE.replace(",20\n", ",21\n"))
    with pytest.raises(InputError, match="not the trace that the plan was made with"):
        simulate_plan(plan, tmp_path)
    replaced = simulate_plan(plan, tmp_path, trace=folder / "t.csv")  # asked for by name, it is simulated
    assert replaced["simulated_requests"] == 400


@pytest.mark.parametrize("bad", [{"rate_per_s": -1.0}, {"rate_per_s": float("nan")}, {"seconds": 0.0}])
def test_figures_that_are_no_rate_or_time_are_refused(plans: dict[str, Plan], bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        simulate_plan(plans["plain"], ".", **bad)


def test_one_trace_cannot_replace_two_classes(plans: dict[str, Plan], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 request classes"):
        simulate_plan(plans["classes"], tmp_path, trace=tmp_path / "t.csv")


def test_a_small_cache_is_told() -> None:
    """An L4 keeps about 32,000 tokens beside Llama 8B: not twice a request of 20,000, and few of 4,500."""
    l4 = ("{name: l4, device: l4, count: 1, gpus_per_node: 1, price: $1/h, rent: gpu}",)
    model = "{small: meta-llama/Llama-3.1-8B}"

    def notes(prompt: int) -> str:
        traffic = CHAT.replace("4/s", "1/min").replace("500", str(prompt)).replace("{p90: 1s}", "{p90: 60s}")
        traffic = traffic.replace("50ms", "200ms")
        return " ".join(plan_of(models=model, pools=l4, traffic=traffic).predictions.notes)

    assert "times the longest request" in notes(20_000)
    assert "times the longest request" not in notes(4500)
    assert "the cache, not the seats" in notes(4500)
    assert "KV cache" not in notes(200)


def test_a_million_tokens_cost_what_the_mean_traffic_makes_them(tmp_path: Path) -> None:
    """Twenty quiet minutes around ten busy ones: the price of a token is not that of the busy ones."""
    times = [*np.arange(0, 600, 2.0), *np.arange(600, 1200, 0.5), *np.arange(1200, 1800, 2.0)]
    rows = "".join(f"{time},100,20\n" for time in times)
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    traffic = "  - {name: chat, model: small, trace: {file: t.csv}, slo: {ttft: {p90: 1s}}}\n"
    plan = make_plan(parse_deployment(text_of(traffic=traffic)).spec, tmp_path)
    assert plan.predictions.classes[0].rate_per_s == pytest.approx(2.0, rel=0.01)
    mean_rate = (len(times) - 1) / times[-1]  # 1/s
    assert plan.cost.usd_per_hour is not None
    assert plan.cost.usd_per_million_tokens == pytest.approx(
        plan.cost.usd_per_hour / (mean_rate * 120 * 3600) * 1e6, rel=1e-6
    )


def test_past_saturation_what_is_served_is_told_and_the_verdict_says_so(plans: dict[str, Plan]) -> None:
    plan = plans["llama"]
    busy, flooded = (simulate_plan(plan, ".", rate_per_s=rate, seconds=120.0) for rate in (25.0, 500.0))
    assert busy["verdict"]["saturated"] is False
    assert flooded["verdict"]["saturated"] is True
    assert flooded["verdict"]["text"].startswith("saturated: ")
    assert not flooded["verdict"]["holds"]
    offered = flooded["simulated_requests"] * 60 / flooded["window_s"]
    served = sum(group["output_tokens_per_s"] for group in flooded["groups"])
    assert served < 0.8 * offered
    assert sum(group["output_tokens_per_s"] for group in busy["groups"]) == pytest.approx(
        busy["simulated_requests"] * 60 / busy["window_s"], rel=0.05
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens must reach max_num_seqs"),
        ({"max_num_seqs": 10_000}, "max_num_batched_tokens must reach max_num_seqs"),
    ],
)
def test_limits_that_contradict_each_other_are_an_input_error(
    plans: dict[str, Plan], change: dict[str, int], says: str
) -> None:
    plan = plans["plain"]
    group = plan.groups[0]
    edited = plan.model_copy(
        update={"groups": (group.model_copy(update={"limits": group.limits.model_copy(update=change)}),)}
    )
    with pytest.raises(InputError, match=says) as caught:
        simulate_plan(edited, ".")
    assert caught.value.field == "groups[0]"


def test_another_trace_may_have_another_format(plans: dict[str, Plan], tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    rows = "".join(f"2024-01-01 00:00:{second:02d}.000000,300,20\n" for second in range(60))
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    found = simulate_plan(plans["plain"], tmp_path, trace=azure, trace_format="azure")
    assert (found["simulated_requests"], found["window_s"]) == (60, 59.0)
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("num_prefill_tokens,num_decode_tokens\n300,20\n")
    drawn = simulate_plan(plans["plain"], tmp_path, trace=lengths, trace_format="sharegpt")  # at the plan's 4/s
    assert drawn["simulated_requests"] / drawn["window_s"] == pytest.approx(4, rel=0.1)
    with pytest.raises(InputError, match="no trace is given"):
        simulate_plan(plans["plain"], tmp_path, trace_format="azure")


def test_recorded_times_are_stretched_to_a_rate(plans: dict[str, Plan], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE)  # 4/s
    found = simulate_plan(plans["plain"], tmp_path, trace=tmp_path / "t.csv", rate_per_s=8.0)
    assert found["simulated_requests"] / found["window_s"] == pytest.approx(8, rel=0.01)


def test_a_rate_rescales_all_classes(plans: dict[str, Plan]) -> None:
    found = simulate_plan(plans["classes"], ".", rate_per_s=5.5)
    assert found["simulated_requests"] / found["window_s"] == pytest.approx(5.5, rel=0.06)
    chat, batch = found["classes"]
    assert chat["requests"] / batch["requests"] == pytest.approx(10, rel=0.15)
