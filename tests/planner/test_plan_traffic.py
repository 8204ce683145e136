"""Plans for sessions, shared prefixes and diurnal rates, and what a simulation of such a plan makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planning import plan_of, problem_of, spec_of, text_of

from planner.answers.conflict_words import demand
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.plan_simulation.traffic import at_rate
from planner.problem import compressed
from planner.simulate import declared_workload
from specs.deployment import parse_deployment
from specs.plan import Plan

MODELS = "{small: {architecture: Qwen/Qwen3-0.6B, max_context: 16Ki}}"
TRAFFIC = """\
  - name: talk
    model: small
    sessions: {rate: 0.5/s, turns: {mean: 5}, think_time: {mean: 5s}, growing_context: true}
    prompt_tokens: {mean: 200, max: 1000}
    output_tokens: {mean: 60, max: 200}
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
  - name: day
    model: small
    arrivals: {rate: 2/s, process: diurnal, peak_to_mean: 1.5}
    prompt_tokens: 500
    output_tokens: 60
    shared_prefix: {tokens: 400, groups: 3}
    slo: {ttft: {p90: 1s}, tpot: {p90: 50ms}}
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(models=MODELS, traffic=TRAFFIC)


@pytest.fixture(scope="module")
def uncached() -> Plan:
    return plan_of(models=MODELS, traffic=TRAFFIC, rest="choices: {small: {prefix_caching: false}}")


def test_a_plan_caches_what_prompts_share(plan: Plan, uncached: Plan) -> None:
    assert all(group.cache.prefix_caching for group in plan.groups)
    assert "of the prompt tokens are found in the prefix cache (simulated)" in " ".join(plan.predictions.notes)
    assert not any(group.cache.prefix_caching for group in uncached.groups)
    assert "group-0: what prompts share is not reused" in " ".join(uncached.predictions.notes)
    talk, day = plan.certificate.windows
    assert talk.source == "sessions of 5 turns at 0.5/s"
    assert (day.start_s + day.end_s) / 2 == 43_200, "around the peak"
    assert all(check.holds for check in plan.certificate.checks)
    rates = {item.request_class: item.rate_per_s for item in plan.predictions.classes}
    assert rates["day"] == pytest.approx(3.0, rel=0.15)


def test_a_simulation_lets_turns_wait_and_a_prefix_cache_find_what_they_share(plan: Plan, uncached: Plan) -> None:
    plain, cached = (simulate_plan(item, Path(), seconds=200) for item in (uncached, plan))
    assert plain["sessions"]["turns_mean"] > 1
    first, second = (run["classes"][1]["ttft_s"]["p50"] for run in (plain, cached))
    assert second < first
    assert cached["groups"][0]["prefix_hit_rate"] > 0.5


def test_headroom_and_fewer_conversations_scale_sessions_too() -> None:
    problem = problem_of(models=MODELS, traffic=TRAFFIC, rest="limits: {utilisation: 50%}")
    workload, declared = problem.workload, problem.declared
    assert workload.horizon_s == declared.horizon_s / 2
    assert workload.gap_s is not None
    assert declared.gap_s is not None
    assert workload.gap_s.tolist() == (declared.gap_s / 2).tolist(), "turns come twice as fast, too"
    fewer = at_rate(problem.spec, problem.base_dir, 0.5)
    assert fewer.traffic[0].sessions is not None
    assert fewer.traffic[0].sessions.rate_per_s == 0.25
    assert demand(fewer) == "traffic: talk 0.25 sessions/s, day 1/s"


def test_deadlines_move_with_arrivals() -> None:
    workload, _ = declared_workload(spec_of(models=MODELS, traffic=TRAFFIC), Path(), seconds=50)
    half = compressed(workload, 0.5)
    assert half.deadline_s is not None
    assert half.deadline_s - half.arrival_s == pytest.approx(np.ones(len(workload)))
    assert half.horizon_s == 25
    without = replace(workload, deadline_s=None)
    assert compressed(without, 0.5).deadline_s is None


def test_what_was_left_out_of_a_trace_is_noted_in_the_plan(tmp_path: Path) -> None:
    rows = "".join(f"{second},GPT-4,{100 + second},{second % 5},0,API log\n" for second in range(200))
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    (tmp_path / "burst.csv").write_text(header + rows)
    traffic = (
        "  - name: log\n    model: small\n    trace: {file: burst.csv, format: burstgpt}\n    slo: {ttft: {p90: 1s}}\n"
    )
    spec = parse_deployment(text_of(models=MODELS, traffic=traffic)).spec
    found = make_plan(spec, tmp_path, version="test")
    assert "log: 40 of 200 requests have no tokens (they failed) and are left out" in found.predictions.notes
