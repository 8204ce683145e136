"""Energy of a simulated plan: the plan's own prediction again, and what follows from watts, seconds and tokens."""

from __future__ import annotations

from typing import Any

import pytest
from planning import planned

from planner.plan_simulation.policies import Policies
from planner.plan_simulation.simulate import simulate_plan
from specs.plan import Plan, Speculation

SPEC = """\
models:
  chat: Qwen/Qwen3-0.6B
hardware:
  carbon: 400 g/kWh
  pools:
    - {name: l40s, device: l40s, count: 4, price: $1.10/h, rent: gpu}
traffic:
  - name: chat
    arrivals: 4/s
    prompt_tokens: 300
    output_tokens: 100
    slo: {ttft: {p90: 1s}}
choices: {engine: vllm, chat: {max_num_seqs: 16, max_num_batched_tokens: 512}}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(SPEC, tmp_path_factory.mktemp("spec"))


def energy(plan: Plan, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = simulate_plan(plan, ".", **options)["energy"]
    return found


def test_the_plans_traffic_takes_the_plans_watts(plan: Plan) -> None:
    found = energy(plan)
    assert found["basis"] == "predicted"
    assert found["power_w"] == pytest.approx(plan.cost.power_w, rel=1e-9)
    assert found["joules_per_output_token"] == pytest.approx(plan.cost.joules_per_output_token, rel=1e-9)
    assert found["joules_per_token"] == pytest.approx(plan.cost.joules_per_token, rel=1e-9)
    assert found["grams_co2_per_million_output_tokens"] == pytest.approx(
        plan.cost.grams_co2_per_million_output_tokens, rel=1e-9
    )
    assert sum(group["power_w"] for group in found["groups"]) == pytest.approx(found["power_w"])


def test_joules_and_grams_follow_from_the_watts(plan: Plan) -> None:
    summary = simulate_plan(plan, ".", seconds=100)
    found = summary["energy"]
    assert found["joules"] == pytest.approx(found["power_w"] * summary["window_s"])
    assert found["grams_co2"] == pytest.approx(found["joules"] / 3.6e6 * 400)


def test_more_traffic_takes_more_watts_but_fewer_joules_a_token(plan: Plan) -> None:
    little, much = energy(plan, rate_per_s=1.0), energy(plan, rate_per_s=8.0)
    assert little["power_w"] < much["power_w"] <= plan.cost.gpus * plan.devices["l40s"].power_w
    assert little["joules_per_output_token"] > 2 * much["joules_per_output_token"]


def test_what_is_not_counted_is_said(plan: Plan) -> None:
    assert energy(plan)["notes"][0].startswith("devices only")
    drafted = energy(plan, policies=Policies(speculation=Speculation(draft_tokens=2, acceptance=0.5)), seconds=30)
    assert any("draft tokens" in note for note in drafted["notes"])
    assert not any("draft tokens" in note for note in energy(plan)["notes"])


def test_an_old_plan_without_power_profiles_has_no_energy(plan: Plan) -> None:
    assert simulate_plan(plan.model_copy(update={"power": {}}), ".", seconds=30)["energy"] is None
