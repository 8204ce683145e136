"""Large fleets: the programme of one row a model, its undominated columns, and mended plans."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.cost.bound import WorkSums, optimistic_work_s
from planner.optimize import column_generation as module
from planner.optimize.arrays import HighsModel
from planner.optimize.column_generation import FleetMaster
from planner.optimize.fleet_columns import undominated
from planner.optimize.fleet_models import more
from planner.optimize.programme import Column, Pool, Programme
from planner.optimize.solve import relaxation, solve
from planner.plan import make_plan
from planner.plan_simulation.simulate import simulate_plan
from planner.plan_simulation.traffic import at_rate
from planner.problem import pose
from planner.simulate.traffic import window
from specs.deployment import parse_deployment
from specs.deployment.models import DeploymentSpec

POOL = Pool("p", 64, 8, 1.0, "node")


def columns_of(draw: random.Random) -> list[Column]:
    return [
        Column(f"c{index}", draw.choice("ab"), "p", draw.choice([1, 2, 4, 8]), (("k", draw.uniform(0.02, 0.6)),))
        for index in range(8)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_dominated_columns_are_never_missed(seed: int) -> None:
    draw = random.Random(seed)
    columns = [replace(column, shares=((column.model, column.shares[0][1]),)) for column in columns_of(draw)]
    kept = undominated(columns)
    every, few = (
        solve(Programme((POOL,), tuple(part), (), tuple(sorted({c.model for c in columns})), "cost"))
        for part in (columns, kept)
    )
    assert few.value == pytest.approx(every.value)


def test_a_size_that_does_not_divide_another_stays() -> None:
    three, two = (Column(f"c{n}", "m", "p", n, (("m", 0.1),)) for n in (3, 2))
    assert undominated([three, two]) == [two, three]
    assert undominated([replace(three, gpus=4), two]) == [two]


def test_the_relaxation_is_below_the_programme_and_names_what_it_uses() -> None:
    data = Programme((POOL,), (Column("a", "m", "p", 1, (("m", 0.3),)),), (), ("m",), "cost")
    value, used = relaxation(data)
    assert used == {"a"}
    assert value == pytest.approx(1.0 / 0.3, rel=1e-4)
    assert solve(data).value == 8.0
    assert relaxation(replace(data, pools=(replace(POOL, devices=1),))) == (math.inf, frozenset())


def test_more_replicas_keep_the_proportions_and_grow_one_by_one() -> None:
    steps = more((1, 3))
    assert steps[:4] == [(1, 4), (1, 5), (2, 5), (2, 6)]
    large = more((300, 100))
    assert [sum(step) for step in large[:2]] == [412, 425]
    assert large[0] == (309, 103)


FLEET = """
models:
  small: {architecture: Qwen/Qwen3-1.7B, weights: bf16, max_context: 8Ki}
  large: {architecture: meta-llama/Llama-3.1-8B, weights: bf16, max_context: 8Ki}
hardware:
  pools:
    - {name: h100, device: h100-sxm, count: 64, gpus_per_node: 8, price: $2.90/h, rent: gpu}
    - {name: l40s, device: l40s, count: 64, gpus_per_node: 8, price: $1.10/h, rent: gpu}
traffic:
  - {name: a, model: small, arrivals: 120/s, prompt_tokens: 400, output_tokens: {mean: 80, max: 300},
     slo: {ttft: {p90: 1s}, tpot: {p90: 60ms}}}
  - {name: b, model: large, arrivals: 60/s, prompt_tokens: {uniform: [200, 2k]}, output_tokens: 60,
     slo: {ttft: {p90: 1s}, tpot: {p90: 60ms}}}
objective: minimise cost
choices: {disaggregation: never, small: {tensor_parallel: 1, pipeline_parallel: 1},
          large: {tensor_parallel: [1, 2], pipeline_parallel: 1}}
"""


def fleet(times: float = 1.0) -> DeploymentSpec:
    """Of so many times the traffic."""
    spec = parse_deployment(FLEET).spec
    return spec if times == 1.0 else at_rate(spec, Path(), times)


def test_a_large_fleet_costs_about_what_the_search_by_configurations_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "FLEET_REQUESTS", 1_000)  # two minutes
    exact = make_plan(fleet(4.0), Path())
    monkeypatch.setattr(module, "PAIRS", 0)
    problem = pose(fleet(4.0), Path())
    assert isinstance(problem.master(), FleetMaster)
    plan = make_plan(fleet(4.0), Path())
    assert plan.certificate.value <= 1.15 * exact.certificate.value
    assert plan.certificate.priced_bound <= plan.certificate.value
    assert plan.certificate.bound <= exact.certificate.value * (1 + 1e-6)
    assert all(check.holds for check in plan.certificate.checks)
    assert plan.certificate.fresh is not None
    assert [limit.request_class for limit in plan.certificate.fresh.limits] == ["a", "a", "b", "b"]
    assert not any(limit.verdict.startswith("broken") for limit in plan.certificate.fresh.limits)
    again = simulate_plan(plan, Path())  # what was put together from models is what the whole plan does
    for found, told in zip(again["classes"], plan.predictions.classes, strict=True):
        assert found["ttft_s"]["p90"] == told.ttft_s["p90"]


def test_threads_do_not_change_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "FLEET_REQUESTS", 1_000)
    monkeypatch.setattr(module, "PAIRS", 0)
    plans = []
    for threads in ("1", "2"):
        monkeypatch.setenv("CAPSTAN_THREADS", threads)
        plans.append(make_plan(fleet(), Path()).model_dump_json())
    assert plans[0] == plans[1]


def test_sums_over_requests_say_what_the_requests_say() -> None:
    problem = pose(fleet(), Path())
    prompts, outputs = np.array([1, 40, 900, 4000]), np.array([1, 2, 300, 17])
    for family in problem.families:
        found = WorkSums.of(prompts, outputs).seconds(family.times)
        assert found == pytest.approx(optimistic_work_s(family.times, prompts, outputs))


def test_highs_relaxes_what_has_to_be_whole() -> None:
    import pulp

    problem = pulp.LpProblem("relaxed", pulp.LpMinimize)
    amount = pulp.LpVariable("n", 0, 9, cat=pulp.LpInteger)
    problem += amount
    problem += 2 * amount >= 3
    assert HighsModel(problem, 1e-6, relaxed=True).run(1.0).bound == pytest.approx(1.5)
    assert HighsModel(problem, 1e-6).run(1.0).bound == pytest.approx(2.0)
