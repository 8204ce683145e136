"""Prices: the ladder, thinning, limits, and brackets that close on a proven load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import CHAT, H100, L40S, problem_of

from planner.candidates.family import Family
from planner.candidates.pricing import LEAST_SAFE_BUDGET, Pricer
from planner.candidates.rungs import Rung, ladder
from planner.candidates.screens import busiest_part, decisive
from planner.problem import Problem
from planner.simulate import Workload
from specs.deployment import SLO, PercentileLimit

TWO = (
    CHAT
    + """  - name: batch
    model: small
    arrivals: 1/s
    prompt_tokens: 3000
    output_tokens: 50
"""
)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(
        models="{small: meta-llama/Llama-3.1-8B}", pools=(L40S, H100), traffic=CHAT.replace("4/s", "20/s")
    )


def pricer_of(problem: Problem) -> Pricer:
    return problem.master().pricer


def family_of(problem: Problem, pool: str = "l40s", tensor: int = 1) -> Family:
    return next(
        f
        for f in problem.families
        if (f.pool.name, f.layout.tensor_parallel, f.layout.pipeline_parallel) == (pool, tensor, 1)
    )


def test_the_ladder_by_hand() -> None:
    # 3 replicas could bear 3 / 2.3 = 1.30 times the demand
    assert ladder(2.3, 5)[:4] == [Rung(3, 1.25), Rung(3, 1.0), Rung(4, 1.0), Rung(5, 1.0)]
    assert ladder(2.3, 5)[4] == Rung(5, 0.95)
    assert ladder(2.0, 5)[0] == Rung(2, 1.0)
    assert [rung.share for rung in ladder(0.3, 1)[:6]] == [3.0, 2.5, 2.0, 1.75, 1.5, 1.25]
    assert ladder(0.1, 1)[0] == Rung(1, 4.0)
    assert ladder(10.0, 2) == [Rung(2, share) for share in (0.2, 0.15, 0.1, 0.05)]  # 2 / 10 at most
    assert ladder(3.0, 0) == []


def test_a_multiple_of_the_demand_is_the_same_requests_in_less_time(problem: Problem) -> None:
    pricer = pricer_of(problem)
    whole, double = pricer.part(("chat",), 1.0), pricer.part(("chat",), 2.0)
    assert double.arrival_s.tolist() == (whole.arrival_s / 2).tolist()
    assert double.horizon_s == whole.horizon_s / 2
    assert double.prompt_tokens.tolist() == whole.prompt_tokens.tolist()


def test_a_replica_that_carries_a_multiple_of_the_demand_is_priced_so() -> None:
    """Otherwise two small replicas would count for twice the headroom of one large one, however little they bear."""
    problem = problem_of(models="{small: meta-llama/Llama-3.1-8B}", pools=(H100,), traffic=CHAT.replace("4/s", "2/s"))
    pricer = pricer_of(problem)
    one, two = (pricer.bracket(family_of(problem, "h100", tensor), ("chat",)) for tensor in (1, 2))
    for bracket in (one, two):
        while not bracket.closed:
            pricer.narrow(bracket)
    assert two.lower >= one.lower > 2


def test_without_objectives_a_price_costs_no_simulation() -> None:
    problem = problem_of(traffic=CHAT[: CHAT.index("    slo")])
    pricer = pricer_of(problem)
    bracket = pricer.bracket(family_of(problem), ("chat",))
    while not bracket.closed:
        pricer.narrow(bracket)
    assert bracket.lower > 0
    assert pricer.simulations == 0


@given(load=st.floats(0.001, 50), most=st.integers(1, 40))
def test_every_rung_asks_less_than_the_one_above_and_none_more_than_all_the_time(load: float, most: int) -> None:
    rungs = ladder(load, most)
    asked = [rung.per_replica for rung in rungs]
    assert asked == sorted(asked, reverse=True)
    assert len(set(asked)) == len(asked)
    assert all(1 <= rung.replicas <= most and rung.per_replica * load <= 1 + 1e-6 for rung in rungs)


def test_thinning_is_nested_and_keeps_its_share(problem: Problem) -> None:
    pricer = pricer_of(problem)
    parts = [pricer.part(("chat",), share) for share in (1.0, 0.7, 0.3)]
    times = [set(part.arrival_s.tolist()) for part in parts]
    assert times[2] < times[1] < times[0]
    assert [len(part) / len(parts[0]) for part in parts] == pytest.approx([1.0, 0.7, 0.3], abs=0.03)
    assert len({part.horizon_s for part in parts}) == 1


def test_the_busiest_part_is_the_window_with_the_most_tokens() -> None:
    count = 1000
    arrival_s = np.arange(count, dtype=np.float64)
    prompts = np.ones(count, dtype=np.int64)
    prompts[400:500] = 50
    workload = Workload(
        ("a",), np.zeros(count, dtype=np.int64), arrival_s, prompts, np.ones(count, dtype=np.int64), 1000.0
    )
    part = busiest_part(workload, 100)
    assert (part.horizon_s, len(part), part.arrival_s[0]) == (100.0, 100, 0.0)
    assert int(part.prompt_tokens.sum()) == 100 * 50
    assert busiest_part(workload, 501) is workload  # not twice as long


@pytest.mark.parametrize("limit_ms", [12, 20, 35, 50, 80, 200])
def test_a_full_step_of_the_safe_budget_keeps_the_tpot_limit(limit_ms: int) -> None:
    problem = problem_of(
        models="{small: meta-llama/Llama-3.1-8B}", pools=(L40S, H100), traffic=CHAT.replace("50ms", f"{limit_ms}ms")
    )
    pricer = pricer_of(problem)
    for family in problem.families:
        budget = pricer.safe_budget(family, ("chat",))
        assert budget % 64 == 0
        full_s = family.times.tokens_s[budget] + family.times.sampled_s[64]
        assert full_s <= limit_ms / 1000 or budget == LEAST_SAFE_BUDGET


def test_only_the_limits_of_the_classes_served_shape_the_budget() -> None:
    problem = problem_of(traffic=TWO.replace("50ms", "5ms"))
    pricer, family = pricer_of(problem), family_of(problem)
    assert pricer.safe_budget(family, ("batch",)) == 0  # no TPOT limit
    assert 0 < pricer.safe_budget(family, ("chat",)) == pricer.safe_budget(family, ("chat", "batch"))


@pytest.mark.parametrize(("pool", "tensor"), [("l40s", 1), ("l40s", 4), ("h100", 1), ("h100", 8)])
def test_a_bracket_closes_and_its_bounds_never_cross(problem: Problem, pool: str, tensor: int) -> None:
    pricer = pricer_of(problem)
    bracket = pricer.bracket(family_of(problem, pool, tensor), ("chat",))
    assert bracket.upper == pytest.approx(1 / bracket.load)
    before = (bracket.lower, bracket.upper)
    for _ in range(len(bracket.rungs) + 1):
        if bracket.closed:
            break
        pricer.narrow(bracket)
        assert before[0] <= bracket.lower <= bracket.upper <= before[1] + 1e-12
        before = (bracket.lower, bracket.upper)
    assert bracket.closed
    assert bracket.lower == bracket.upper > 0
    simulations = pricer.simulations
    pricer.narrow(bracket)  # nothing is left to ask
    assert pricer.simulations == simulations
    if bracket.passed is not None:
        assert bracket.variant is not None
        assert pricer.trial(bracket.variant, bracket.rungs[bracket.passed], ("chat",)).passed


def test_a_limit_that_no_step_keeps_is_settled_without_a_simulation() -> None:
    problem = problem_of(traffic=CHAT.replace("50ms", "1ms"))
    pricer, family = pricer_of(problem), family_of(problem)
    assert pricer.hopeless(family, ("chat",))
    bracket = pricer.bracket(family, ("chat",))
    pricer.narrow(bracket)
    assert pricer.simulations == 0
    assert bracket.closed
    assert bracket.upper == 0.0
    assert bracket.failure is not None
    assert "tpot" in bracket.failure.metrics
    assert "chat: p90 TPOT <= 0.001 s" in bracket.failure.broken[0] or "TPOT" in bracket.failure.broken[0]


def test_a_failed_trial_names_the_limits_that_broke(problem: Problem) -> None:
    pricer, family = pricer_of(problem), family_of(problem)
    variant = pricer.first_limits(family, ("chat",))
    assert variant is not None
    trial = pricer.trial(variant, Rung(1, 1.0), ("chat",))
    assert not trial.passed
    assert trial.metrics <= {"ttft", "tpot"}
    assert trial.metrics
    assert all("chat" in text for text in trial.broken)
    assert pricer.trial(variant, Rung(8, 0.3), ("chat",)).passed


def test_a_class_without_requests_at_a_thin_share_breaks_nothing() -> None:
    problem = problem_of(traffic=CHAT.replace("4/s", "0.01/s"))
    pricer, family = pricer_of(problem), family_of(problem)
    variant = pricer.first_limits(family, ("chat",))
    assert variant is not None
    assert len(pricer.part(("chat",), 0.0)) == 0
    assert pricer.trial(variant, Rung(1, 0.0), ("chat",)).passed


def test_loads_add_up_over_classes_and_scale_with_the_rate() -> None:
    slow = problem_of(traffic=CHAT.replace("4/s", "{rate: 2/s, process: constant}"))
    fast = problem_of(traffic=CHAT.replace("4/s", "{rate: 6/s, process: constant}"))
    one, three = pricer_of(slow), pricer_of(fast)
    assert three.load(family_of(fast), "chat") == pytest.approx(3 * one.load(family_of(slow), "chat"), rel=0.01)


def test_pinned_limits_are_never_left() -> None:
    pins = "choices: {small: {max_num_seqs: 16, max_num_batched_tokens: [128, 192]}}"
    problem = problem_of(rest=pins, traffic=CHAT.replace("50ms", "8ms"))
    pricer, family = pricer_of(problem), family_of(problem)
    bracket = pricer.bracket(family, ("chat",))
    while not bracket.closed:
        pricer.narrow(bracket)
        for trial in (bracket.failure,):
            if trial is not None:
                assert trial.variant.limits.max_num_seqs == 16
                assert trial.variant.limits.max_num_batched_tokens in (128, 192)
    assert pricer.variant(family, 256, 192) is None  # would need a larger step than is pinned


def test_the_decisive_requirement_is_the_one_on_tpot() -> None:
    ttft = PercentileLimit(metric="ttft", percentile=90, limit_s=1)
    tpot = PercentileLimit(metric="tpot", percentile=95, limit_s=0.05)
    assert decisive(SLO(percentiles=(ttft, tpot))).share == 0.95
    assert decisive(SLO(percentiles=(ttft,))).share == 0.9
    assert decisive(SLO(joint={"ttft": 1.0}, attainment=0.99)).share == 0.99


@settings(max_examples=5, deadline=None)
@given(limit_ms=st.integers(8, 80))
def test_the_miss_of_a_family_is_a_share_that_falls_with_the_limit(limit_ms: int) -> None:
    def miss(milliseconds: int) -> float:
        traffic = CHAT.replace("500", "{lognormal: {mean: 500, p99: 4k}}").replace("50ms", f"{milliseconds}ms")
        problem = problem_of(models="{small: meta-llama/Llama-3.1-8B}", traffic=traffic)
        return pricer_of(problem).miss(family_of(problem), "chat")

    assert 0.0 <= miss(2 * limit_ms) <= miss(limit_ms) <= 1.0
