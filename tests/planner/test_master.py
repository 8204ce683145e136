"""Lazy pricing: its optimum is that of pricing everything, refuted plans shrink, and the search gives up honestly."""

from __future__ import annotations

from typing import Any

import pytest
from planning import CHAT, H100, L40S, problem_of

from planner.optimize import judging
from planner.optimize import master as module
from planner.optimize.decision import routes_of
from planner.optimize.master import Bought, Master, alone
from planner.optimize.programme import Pool
from planner.optimize.solve import solve
from planner.problem import Problem
from specs.errors import NoPlanError

LLAMA = "{small: meta-llama/Llama-3.1-8B}"
TWO_CLASSES = (
    CHAT.replace("4/s", "12/s")
    + """  - name: batch
    model: small
    arrivals: 1/s
    prompt_tokens: 3000
    output_tokens: 50
    slo: {e2e: {p90: 20s}}
"""
)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(models=LLAMA, pools=(L40S, H100), traffic=CHAT.replace("4/s", "25/s"))


def priced_in_full(problem: Problem) -> Master:
    """A master that knows every price: what lazy pricing must equal."""
    master = problem.master()
    for family in problem.families:
        for bracket in master.open(family):
            while not bracket.closed:
                master.pricer.narrow(bracket)
    return master


@pytest.mark.parametrize("traffic", [CHAT.replace("4/s", "25/s"), TWO_CLASSES], ids=["one class", "two"])
def test_lazy_pricing_finds_the_value_of_pricing_everything_in_fewer_simulations(traffic: str) -> None:
    problem = problem_of(models=LLAMA, pools=(L40S, H100), traffic=traffic)
    lazy, full = problem.master(), priced_in_full(problem)
    found = lazy._solve_lazily(lazy.families)
    assert found is not None
    best = solve(full._programme(full.families, proven=True))
    assert found[0].value <= best.value + 1e-6  # a price found by another path may lie a rung higher, never lower
    assert found[1] <= found[0].value + 1e-6
    assert lazy.pricer.simulations < full.pricer.simulations


def test_the_bound_is_below_the_relaxed_and_the_proven_optimum(problem: Problem) -> None:
    master = problem.master()
    bound, opinion = master.bound()
    assert opinion is None or opinion == pytest.approx(bound)
    decision = master.decide()
    assert decision is not None
    assert bound == pytest.approx(decision.bound)
    assert decision.bound <= decision.priced_bound + 1e-6 <= decision.value + 2e-6


def test_a_wrong_bound_of_one_solver_is_caught_by_the_other(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    master = problem.master()
    true, _ = master.bound()
    monkeypatch.setattr(module, "second_opinion", lambda programme: true - 1)
    assert master.bound() == (true - 1, true - 1)
    monkeypatch.setattr(module, "second_opinion", lambda programme: true + 100)
    assert master.bound()[0] == true


def test_a_bound_above_the_value_is_not_hidden(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.assemble import assemble
    from specs.errors import CapstanError

    master = problem.master()
    monkeypatch.setattr(Master, "later_bound", lambda self: lambda: (1e6, None))
    decision = master.decide()
    assert decision is not None
    with pytest.raises(CapstanError, match="the bound is not above the value"):
        assemble(problem, master, decision, "")


def test_every_class_is_split_in_proportion_to_what_replicas_carry(problem: Problem) -> None:
    master = priced_in_full(problem)
    passed = [bracket for bracket in master.brackets.values() if bracket.lower > 0][:2]
    routes = routes_of((Bought(passed[0], 3), Bought(passed[1], 1)), master.template.classes)
    carried = [3 * passed[0].lower, passed[1].lower]
    assert [route.share for route in routes] == pytest.approx([part / sum(carried) for part in carried])


def test_a_refuted_plan_takes_load_from_the_guilty_only() -> None:
    models = "{small: Qwen/Qwen3-0.6B, other: Qwen/Qwen3-1.7B}"
    traffic = TWO_CLASSES.replace("name: batch\n    model: small", "name: batch\n    model: other")
    master = problem_of(models=models, pools=(L40S,), traffic=traffic).master()
    for family in master.families:
        master.open(family)
    master._shrink((), ("chat: p90 TPOT <= 0.05 s (met by 80.0%)",))
    factors = {
        model: {b.factor for b in master.brackets.values() if b.family.model == model} for model in master.classes_of
    }
    assert factors == {"small": {1.2 * 0.95}, "other": {1.2}}
    master._shrink((), ("the bound on simulated events was reached",))
    assert {b.factor < 1.2 for b in master.brackets.values()} == {True}


def test_a_plan_that_is_refuted_once_is_made_again_with_less_load(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = judging.broken_limits, []

    def refute_first(*arguments: Any) -> Any:
        calls.append(real(*arguments))
        return (("chat: p90 TPOT",), frozenset({"tpot"})) if len(calls) == 1 else calls[-1]

    monkeypatch.setattr(judging, "broken_limits", refute_first)
    monkeypatch.setattr("planner.optimize.master.retuned", lambda *_: iter(()))
    decision = problem.master().decide()
    assert decision is not None
    assert len(calls) >= 2
    assert all(item.column.factor < 1.2 for item in decision.bought)
    assert decision.refuted == 1
    assert decision.priced_bound <= decision.value


def test_a_plan_that_is_refuted_tries_other_limits_before_it_loses_load(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = problem.master().decide()
    real, seen = judging.broken_limits, []

    def refute_these_budgets(result: Any, *arguments: Any) -> Any:
        budgets = {item.column.variant.limits.max_num_batched_tokens for item in seen[-1]}
        told = ("chat: p90 TPOT <= 0.05 s (met by 80.0%)",), frozenset({"tpot"})
        return told if budgets & refused else real(result, *arguments)

    judged = Master._judged

    def remember(self: Master, bought: Any, *arguments: Any) -> Any:
        seen.append(bought)
        return judged(self, bought, *arguments)

    refused = {item.column.variant.limits.max_num_batched_tokens for item in usual.bought}
    monkeypatch.setattr(judging, "broken_limits", refute_these_budgets)
    monkeypatch.setattr(Master, "_judged", remember)
    decision = problem.master().decide()
    assert decision.value == usual.value
    assert decision.refuted == 0
    assert all(item.column.variant.limits.max_num_batched_tokens < min(refused) for item in decision.bought)


def test_a_search_that_gives_up_says_so_and_does_not_call_it_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(pools=(L40S.replace("count: 8", "count: 64"),))
    monkeypatch.setattr(judging, "broken_limits", lambda *arguments: (("chat: p90 TPOT",), frozenset({"tpot"})))
    with pytest.raises(NoPlanError, match="does not prove that there is none") as caught:
        problem.master().decide()
    assert caught.value.conflict == ("chat: p90 TPOT",)


def test_what_one_family_costs_alone_by_hand(problem: Problem) -> None:
    family = next(f for f in problem.families if f.pool.name == "l40s" and f.gpus == 1)
    by_device = Pool("l40s", 8, 4, 2.0, "gpu")
    by_node = Pool("l40s", 8, 4, 2.0, "node")
    assert alone(family, [by_device], 0.4, "cost") == (3, 6.0)
    assert alone(family, [by_device], 0.5, "cost") == (2, 4.0)
    assert alone(family, [by_node], 0.4, "cost") == (3, 8.0)
    assert alone(family, [by_node], 0.4, "gpus") == (3, 4.0)
    assert alone(family, [by_device], 0.1, "cost") is None  # ten of eight
    assert alone(family, [by_device], 0.0, "cost") is None
