"""What makes one query quick, and what it must not change: plans are the same on any number of threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planning import CHAT, H100, problem_of, spec_of

from planner.candidates import pricing
from planner.candidates.pricing import AT_A_TIME, FAR_FROM_PASSING, FAR_FROM_TPOT, FAR_STRIDE, Pricer
from planner.candidates.rungs import Bracket, Rung, Trial
from planner.optimize import lazy_search
from planner.optimize.arrays import HighsModel
from planner.optimize.decision import Bought
from planner.optimize.fresh_seeds import Judge
from planner.optimize.programme import Column, Pool, Programme
from planner.optimize.solve import solve
from planner.plan import make_plan
from planner.simulate import Workload
from planner.simulate.together import meanwhile, together
from specs.deployment import SLO, PercentileLimit

DENSE = "{small: Qwen/Qwen3-32B}"
SPLIT = (H100.replace("count: 8", "count: 16"),)
LONG = CHAT.replace("prompt_tokens: 500", "prompt_tokens: {lognormal: {mean: 2000, p99: 8000}}").replace(
    "output_tokens: 60", "output_tokens: {lognormal: {mean: 300, p99: 1200}}"
)
QUIET = LONG.replace("ttft: {p90: 1s}, tpot: {p90: 50ms}", "ttft: {p90: 2s}, tpot: {p90: 30ms}")


@pytest.mark.parametrize("traffic", [LONG, QUIET])
def test_a_plan_has_the_same_bytes_on_one_thread_and_on_two(traffic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for threads in ("1", "2"):
        monkeypatch.setenv("CAPSTAN_THREADS", threads)
        texts.append(make_plan(spec_of(models=DENSE, pools=SPLIT, traffic=traffic), Path()).to_json())
    assert texts[0] == texts[1]


def loaded(most: int = 8) -> tuple[Pricer, list[Bracket]]:
    """The pricer of a busy model, and brackets of it that nothing is known of."""
    problem = problem_of(models=DENSE, pools=SPLIT, traffic=LONG)
    pricer = problem.master().pricer
    return pricer, [pricer.bracket(family, ("chat",)) for family in problem.families[:most]]


def lost(metric: str, seen: float, asked: list[tuple[Any, Rung]]) -> Callable[..., Callable[[], Trial]]:
    """In the place of `Pricer._task`: every trial is lost at `metric` after a share `seen` of the requests."""

    def task(self: Pricer, variant: Any, rung: Rung, classes: tuple[str, ...]) -> Callable[[], Trial]:
        asked.append((variant.limits, rung))
        return lambda: Trial(variant, rung, classes, (f"chat: p90 {metric}",), frozenset({metric}), seen, 999)

    return task


@pytest.mark.parametrize(
    ("metric", "seen", "others"),
    [
        ("tpot", FAR_FROM_TPOT, False),
        ("tpot", FAR_FROM_TPOT + 0.01, True),
        ("ttft", FAR_FROM_PASSING, False),
        ("ttft", FAR_FROM_PASSING + 0.01, True),
    ],
)
def test_other_limits_are_tried_where_they_may_mend_a_trial(
    metric: str, seen: float, others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Rung]] = []
    monkeypatch.setattr(Pricer, "_task", lost(metric, seen, asked))
    pricer, brackets = loaded(1)
    pricer.narrow(*brackets)
    assert (len({limits for limits, _ in asked}) > 1) == others


def test_what_failed_by_far_is_asked_for_much_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Rung]] = []
    monkeypatch.setattr(Pricer, "_task", lost("ttft", FAR_FROM_PASSING / 2, asked))
    pricer, (bracket,) = loaded(1)
    pricer.narrow(bracket)
    failed = bracket.rungs[bracket.failed]
    before = len(asked)
    pricer.narrow(bracket)
    assert asked[before][1].per_replica <= FAR_STRIDE * failed.per_replica


def test_one_bracket_asks_for_two_trials_at_a_time_and_several_for_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def together(tasks: Any) -> list[Trial]:
        listed = list(tasks)
        batches.append(len(listed))
        return [task() for task in listed]

    monkeypatch.setattr(pricing, "together", together)
    monkeypatch.setattr(Pricer, "_task", lost("ttft", 0.1, []))
    pricer, brackets = loaded(4)
    pricer.narrow(brackets[0])
    pricer.narrow(*brackets[1:])
    assert batches == [AT_A_TIME, len(brackets) - 1]


def test_no_programme_is_solved_twice_in_a_row_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Programme, Any]] = []

    def remembered(programme: Programme, **how: Any) -> Any:
        asked.append((programme, how))
        return solve(programme, **how)

    monkeypatch.setattr(lazy_search, "solve", remembered)
    assert problem_of(models=DENSE, pools=SPLIT, traffic=LONG).master().decide() is not None
    assert len(asked) > 3
    assert not any(one == two for index, one in enumerate(asked) for two in asked[index + 1 : index + 4])


def test_goals_that_are_multiples_of_what_is_decided_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one pool of devices by the piece, the price, the devices and the idle ones are one goal."""
    runs: list[HighsModel] = []
    run = HighsModel.run
    monkeypatch.setattr(HighsModel, "run", lambda self, limit: runs.append(self) or run(self, limit))  # type: ignore[func-returns-value]
    pool = Pool("pool", devices=8, node_devices=8, price=2.0, rent="gpu")
    columns = (Column("a", "m", "pool", 1, (("chat", 0.4),)), Column("b", "m", "pool", 2, (("chat", 0.9),)))
    programme = Programme((pool,), columns, (), ("chat",), "cost")
    found = solve(programme, ties="all")
    assert (found.value, found.replicas) == (6.0, {"a": 1, "b": 1})  # 1.3 times the traffic, more than three of `a`
    assert len(runs) == 5  # price, headroom, groups, replicas, order


def test_a_refuted_purchase_is_left_less_than_the_tolerances_of_rows_and_solver_together() -> None:
    """Just below the demand it would come out and be refuted again: rows of two sides add their tolerances."""
    problem = problem_of(models=DENSE, pools=SPLIT, traffic=LONG)
    master = problem.master()
    for role in ("prefill", "decode"):
        family = next(item for item in problem.role_families if item.options.role == role)
        bracket = master.pricer.bracket(family, ("chat",))
        bracket.rungs, bracket.failed, bracket.passed, bracket.load = [Rung(3, 1.0)], -1, 0, 1.0
        master.brackets[bracket.key] = bracket
    bought = tuple(Bought(bracket, 3) for bracket in master.brackets.values())
    assert [round(item.column.lower * item.replicas, 9) for item in bought] == [1.2, 1.2]
    master._shrink(bought, ("chat: p90 E2E <= 1 s (met by 80.0%)",))
    assert [item.column.lower * item.replicas < 1.0 - 5e-5 for item in bought] == [True, True]


def test_a_plan_that_the_planned_traffic_refutes_is_not_counted_on_fresh_traffic() -> None:
    problem = problem_of(models=DENSE, pools=SPLIT, traffic=LONG.replace("4/s", "16/s"))
    master = problem.master()
    bracket = master.pricer.bracket(problem.families[0], ("chat",))
    bracket.passed, bracket.variant = 0, master.pricer.first_limits(bracket.family, bracket.classes)
    judged = master._judged((Bought(bracket, 1),), {}, any_plan=False)
    assert judged.broken
    assert judged.fresh is None
    assert master.pricer.simulations == 1


def test_of_two_fresh_seeds_at_a_time_the_second_counts_only_where_the_first_leaves_it_open() -> None:
    """40 requests of the first seed say nothing; the second, all of them late, refutes; the third is not looked at."""

    def draw(seed: int) -> Workload:
        count = 40 if seed == 1 else 4000
        zeros, ones = np.zeros(count, np.int64), np.ones(count, np.int64)
        return Workload(("chat",), zeros, np.linspace(0, 600, count, endpoint=False), ones, ones, window_s=600.0)

    def simulate(workload: Workload) -> Any:
        late = np.zeros(len(workload), np.bool_) if len(workload) == 40 else np.ones(len(workload), np.bool_)
        return SimpleNamespace(within=lambda metric, limit_s, places: ~late[places])

    limit = {"chat": SLO(percentiles=(PercentileLimit(metric="ttft", percentile=90, limit_s=1.0),))}
    test = Judge(draw, limit, 0)(simulate)
    assert test.broken
    assert test.evidence.seeds == (1, 2)
    assert test.evidence.requests == 4040
    assert test.simulations == 3


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_results_come_in_the_order_of_the_tasks_and_the_first_error_is_raised(
    threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTAN_THREADS", threads)

    def nested(number: int) -> list[int]:
        return together([lambda: number, lambda: -number])

    assert together([lambda number=number: nested(number) for number in range(5)]) == [[n, -n] for n in range(5)]  # type: ignore[misc]
    started: list[int] = []

    def fail(number: int) -> None:
        started.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        together([lambda number=number: fail(number) for number in range(50)])  # type: ignore[misc]
    assert len(started) <= int(threads)


def test_what_runs_meanwhile_says_what_it_found_and_what_went_wrong() -> None:
    assert meanwhile(lambda: 7)() == 7
    with pytest.raises(ZeroDivisionError):
        meanwhile(lambda: 1 // 0)()


def test_planning_loads_neither_the_oracle_nor_what_only_other_questions_need() -> None:
    unwanted = (
        "ssl",
        "urllib.request",
        "planner.simulate.run",
        "planner.simulate.answers",
        "planner.optimize.fleet_models",
    )
    code = f"import sys, planner.plan, planner.simulate.native; print([n for n in {unwanted!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
