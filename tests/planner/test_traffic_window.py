"""Windows of large fleets: as short as their rates allow, and as long as requests stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.plan import make_plan
from planner.plan_simulation.traffic import planned_workload
from planner.simulate.traffic import window
from planner.simulate.traffic.window import FLEET_REQUESTS, SHORTEST_S, STAYS, window_s
from specs.deployment import DeploymentSpec, parse_deployment

SPEC = """
models:
  a: {{architecture: Qwen/Qwen3-1.7B, weights: bf16, max_context: 8Ki}}
  b: {{architecture: Qwen/Qwen3-8B, weights: bf16, max_context: 8Ki}}
hardware:
  pools: [{{name: h100, device: h100-sxm, count: 64, gpus_per_node: 8, price: $2.90/h, rent: gpu}}]
traffic:
  - {{name: one, model: a, arrivals: {rate}/s, prompt_tokens: 100, output_tokens: {{mean: 200, max: 800}},
      slo: {{tpot: {{p90: 50ms}}}}}}
  - {{name: two, model: b, arrivals: 10/s, prompt_tokens: 100, output_tokens: {{uniform: [500, 1500]}}, slo: {slo}}}
choices: {{disaggregation: never}}
"""


def spec(rate: float = 5000.0, slo: str = "{tpot: {p50: 40ms, p90: 80ms}}") -> DeploymentSpec:
    return parse_deployment(SPEC.format(rate=rate, slo=slo)).spec


def test_few_requests_keep_the_whole_window() -> None:
    assert window_s(spec(rate=FLEET_REQUESTS / 600 - 10), 600.0) == 600.0


def test_many_are_as_long_as_the_longest_stays() -> None:
    """Model b: 1,000 tokens at up to 80 ms are 80 s; model a: 200 at 50 ms."""
    assert window_s(spec(), 600.0) == pytest.approx(STAYS * 80.0)
    assert window_s(spec(), 100.0) == 100.0  # never longer than what is asked for


def test_end_to_end_limits_bound_a_stay() -> None:
    assert window_s(spec(slo="{tpot: {p90: 80ms}, e2e: {p90: 45s}}"), 600.0) == pytest.approx(STAYS * 45.0)
    assert window_s(spec(slo="{e2e: {p90: 2s}}"), 600.0) == SHORTEST_S


def test_where_nothing_says_how_long_requests_stay_the_window_stays() -> None:
    assert window_s(spec(slo="{ttft: {p90: 1s}}"), 600.0) == 600.0


def test_a_recorded_class_keeps_the_window(tmp_path: Path) -> None:
    posed = spec()
    one, two = posed.traffic
    unknown = two.model_copy(update={"arrivals": None})
    assert window_s(posed.model_copy(update={"traffic": (one, unknown)}), 600.0) == 600.0


def test_a_plan_is_simulated_again_with_the_window_that_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "FLEET_REQUESTS", 2_000)
    monkeypatch.setattr(window, "SHORTEST_S", 60.0)
    few = spec(rate=30.0, slo="{e2e: {p90: 60s}}")
    few = few.model_copy(update={"traffic": few.traffic[:1], "models": {"a": few.models["a"]}})
    plan = make_plan(few, Path())
    horizon_s = plan.certificate.windows[0].end_s - plan.certificate.windows[0].start_s
    assert 60.0 <= horizon_s < 100.0
    drawn = planned_workload(plan, Path())
    assert drawn.workload.horizon_s == horizon_s
    assert len(drawn.workload) == plan.certificate.windows[0].requests
    assert any(note.startswith(f"simulated for {horizon_s:.0f} s, not 600 s") for note in plan.predictions.notes)
