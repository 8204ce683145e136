"""The solver's answers against brute force over integers, and its statuses as they are."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pulp
import pytest

from planner.optimize import solve as module
from planner.optimize.arrays import HighsModel, Outcome
from planner.optimize.programme import Column, OptimisticFamily, Pool, Programme, slot_gpus
from planner.optimize.solve import second_opinion, solve
from specs.errors import CapstanError

POOL = Pool("p", 8, 8, 1.0, "gpu")
EASY = Programme((POOL,), (Column("a", "m", "p", 1, (("chat", 0.3),)),), (), ("chat",), "cost")


def random_programme(seed: int) -> Programme:
    draw = random.Random(seed)
    pools = (
        Pool("n", 8 * draw.randint(1, 2), 8, draw.choice([1.0, 2.9]), "node"),
        Pool("g", draw.randint(1, 6), 4, draw.choice([1.1, 3.0]), "gpu"),
    )
    classes = ("chat", "code")[: draw.randint(1, 2)]
    columns = tuple(
        Column(
            f"c{index}",
            draw.choice(["m", "n"]),
            draw.choice(["n", "g"]),
            draw.choice([1, 2, 4]),
            tuple((name, draw.choice([0.07, 0.2, 0.34, 0.5, 1.3])) for name in draw.sample(classes, len(classes))),
        )
        for index in range(3)
    )
    return Programme(
        pools,
        columns,
        (),
        classes,
        draw.choice(["cost", "gpus"]),
        budget=draw.choice([None, 20.0]),
        model_gpus=draw.choice([{}, {"m": 4}]),
        model_replicas=draw.choice([{}, {"m": (1, 3)}]),
    )


def brute_force(data: Programme) -> float:
    """The best value over all numbers of replicas; infinite where none is feasible."""
    best = math.inf
    pools = {pool.name: pool for pool in data.pools}
    ranges = [range(pools[column.pool].devices // column.gpus + 1) for column in data.columns]
    for counts in itertools.product(*ranges):
        bought = list(zip(data.columns, counts, strict=True))
        carried = {
            name: sum(n * share for column, n in bought for of, share in column.shares if of == name)
            for name in data.classes
        }
        if any(amount < 1 - 1e-6 for amount in carried.values()):
            continue
        cost = devices = 0.0
        fits = True
        for pool in data.pools:
            slots = sum(n * slot_gpus(c.gpus, pool.node_devices) for c, n in bought if c.pool == pool.name)
            fits &= slots <= pool.devices
            paid = sum(n * c.gpus for c, n in bought if c.pool == pool.name)
            if pool.rent == "node":
                paid = math.ceil(slots / pool.node_devices) * pool.node_devices
            devices += paid
            cost += paid * (pool.price or 0.0)
        fits &= data.budget is None or cost <= data.budget
        for model, most in data.model_gpus.items():
            fits &= sum(n * c.gpus for c, n in bought if c.model == model) <= most
        for model, allowed in data.model_replicas.items():
            fits &= sum(n for c, n in bought if c.model == model) in allowed
        if fits:
            best = min(best, cost if data.quantity == "cost" else devices)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_is_that_of_brute_force(seed: int) -> None:
    data = random_programme(seed)
    found, best = solve(data), brute_force(data)
    assert found.value == pytest.approx(best)
    assert found.bound == pytest.approx(best)
    assert (found.status == "infeasible") == math.isinf(best)
    opinion = second_opinion(data) if seed % 8 == 0 else best
    assert opinion is None if math.isinf(best) and seed % 8 == 0 else opinion == pytest.approx(best)


def test_the_random_programmes_are_of_both_kinds() -> None:
    feasible = [not math.isinf(brute_force(random_programme(seed))) for seed in range(40)]
    assert 10 < sum(feasible) < 38


@pytest.mark.parametrize("seed", range(12))
def test_tie_breaks_keep_the_value(seed: int) -> None:
    data = random_programme(seed)
    plain, tied = solve(data), solve(data, ties="all")
    assert tied.value == pytest.approx(plain.value)
    assert tied == solve(data, ties="all")
    if tied.status == "infeasible":
        return
    chosen = replace(data, columns=tuple(column for column in data.columns if column.key in tied.replicas))
    assert brute_force(chosen) == pytest.approx(plain.value)


@pytest.mark.parametrize("seed", range(20))
def test_a_programme_of_families_bounds_every_plan_of_columns(seed: int) -> None:
    """Columns that carry at most what the utilisation law allows never beat the families that they come from."""
    draw = random.Random(seed)
    loads = [draw.uniform(0.3, 4.0) for _ in range(3)]
    misses = [draw.choice([0.0, 0.05, 0.3]) for _ in range(3)]
    gpus = [draw.choice([1, 2, 4]) for _ in range(3)]
    pool = Pool("p", 16, 8, 1.0, draw.choice(["node", "gpu"]))
    families = tuple(
        OptimisticFamily(f"f{i}", "m", "p", gpus[i], (("chat", loads[i]),), (("chat", misses[i]),) if misses[i] else ())
        for i in range(3)
    )
    data = Programme((pool,), (), families, ("chat",), "cost", {"chat": 0.1})
    # What simulation may allow: less than the law says, and nothing where too many are late even alone.
    columns = tuple(
        Column(f"f{i}", "m", "p", gpus[i], (("chat", draw.uniform(0.4, 1.0) / loads[i]),))
        for i in range(3)
        if misses[i] <= 0.1
    )
    bound = solve(data)
    best = brute_force(replace(data, families=(), columns=columns))
    assert bound.bound <= best + 1e-6
    mixed = replace(data, columns=columns[:1], families=families[1:])
    assert solve(mixed).bound <= brute_force(replace(data, families=(), columns=columns)) + 1e-6


def stopping(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    """HiGHS ends every run in this state, with 4 in every variable."""

    def run(self: HighsModel, time_limit_s: float) -> Outcome:
        for variable in self._variables:
            variable.varValue = 4.0
        return outcome

    monkeypatch.setattr(HighsModel, "run", run)


def test_a_time_limit_is_reported_as_one_with_its_own_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(monkeypatch, Outcome("time limit", 3.0))
    found = solve(EASY)
    assert (found.status, found.value, found.bound, found.replicas) == ("time limit", 4.0, 3.0, {"a": 4})


def test_no_answer_in_time_is_an_error_and_not_infeasibility(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(monkeypatch, Outcome("no plan", -math.inf, "Time limit reached"))
    with pytest.raises(CapstanError, match="stopped without a plan"):
        solve(EASY)
    stopping(monkeypatch, Outcome("infeasible", math.inf))
    assert solve(EASY).status == "infeasible"


def knapsack(size: int) -> pulp.LpProblem:
    """A problem that takes HiGHS long: `size` integers in rows of like numbers."""
    draw = random.Random(5)
    problem = pulp.LpProblem("knapsack", pulp.LpMinimize)
    amounts = [pulp.LpVariable(f"n_{i:03}", 0, 9, cat=pulp.LpInteger) for i in range(size)]
    problem += pulp.lpSum(draw.uniform(1, 2) * amount for amount in amounts)
    for _ in range(size):
        problem += pulp.lpSum(draw.randint(1, 40) * amount for amount in amounts) >= 20 * size
    return problem


def test_a_run_that_highs_ends_early_is_a_time_limit_with_a_bound_below_its_plan() -> None:
    problem = knapsack(60)
    model = HighsModel(problem, 1e-6)
    found = model.run(1.5)
    assert found.status == "time limit"
    assert found.bound < pulp.value(problem.objective)
    before_s = model._highs.getRunTime()
    assert model.run(1.0).status == "time limit"
    assert model._highs.getRunTime() - before_s < 1.4  # the limit is of this run, not of both
    assert HighsModel(knapsack(60), 1e-6).run(0.0).status == "no plan"


@pytest.mark.parametrize("seed", range(12))
def test_a_model_that_is_changed_equals_one_that_is_written_anew(seed: int) -> None:
    """Rows and variables that come later, and another goal, give what PuLP's own way gives to the whole problem."""

    def parts() -> tuple[pulp.LpProblem, list[pulp.LpConstraint], pulp.LpAffineExpression]:
        numbers = random.Random(seed)
        problem = pulp.LpProblem("first", numbers.choice([pulp.LpMinimize, pulp.LpMaximize]))
        x = pulp.LpVariable("x", 0, 7, cat=pulp.LpInteger)
        y = pulp.LpVariable("y", -3, 5)
        z = pulp.LpVariable("z", 0, 4, cat=pulp.LpInteger)
        problem += numbers.uniform(1, 2) * x + numbers.uniform(-1, 1) * y + 3.0
        problem += x + 2 * y + 1 >= numbers.uniform(0, 4)
        return problem, [x + z <= 6, y + z == numbers.choice([1, 2.5])], 2 * x - z + y + 1

    problem, rows, goal = parts()
    model = HighsModel(problem, 1e-6)
    found = model.run(10.0)
    assert found.bound == pytest.approx(pulp.value(problem.objective))
    model.add(rows)
    model.aim(goal)
    again = model.run(10.0)
    written, rows, whole = parts()
    for row in rows:
        written += row
    written.setObjective(whole)
    written.sense = pulp.LpMinimize
    written.solve(pulp.HiGHS(msg=False))
    assert again.status == "optimal"
    assert pulp.value(goal) == pytest.approx(pulp.value(whole)) == pytest.approx(again.bound)


def test_a_problem_without_variables_is_judged_by_its_rows() -> None:
    problem = pulp.LpProblem("empty", pulp.LpMinimize)
    problem += pulp.lpSum([])
    problem += pulp.lpSum([]) >= 1.0
    assert HighsModel(problem, 1e-6).run(1.0).status == "infeasible"


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (Outcome("infeasible", math.inf), "optimal"),  # the same on every machine
        (Outcome("time limit", 0.0, "Time limit reached"), "time limit"),
    ],
)
def test_a_tie_break_that_fails_keeps_the_plan_before_it(
    monkeypatch: pytest.MonkeyPatch, ended: Outcome, status: str
) -> None:
    real, calls = HighsModel.run, []

    def run(self: HighsModel, time_limit_s: float) -> Outcome:
        calls.append(real(self, time_limit_s))
        if len(calls) == 1:
            return calls[-1]
        for variable in self._variables:
            variable.varValue = 0.0
        return ended

    monkeypatch.setattr(HighsModel, "run", run)
    found = solve(EASY, ties="all")
    assert (found.status, found.replicas) == (status, {"a": 4})


def test_a_limit_of_nodes_still_gives_a_plan_and_a_bound() -> None:
    whole, cut = solve(EASY), solve(EASY, most_nodes=0)
    assert cut.replicas
    assert cut.bound <= whole.value <= cut.value


def test_without_highs_cbc_answers_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HighsModel, "available", lambda: False)
    found = solve(EASY, ties="all")
    assert (found.solver, found.value, found.bound, found.status) == ("CBC", 4.0, 4.0, "optimal")
    assert found.replicas == {"a": 4}


def test_without_any_solver_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HighsModel, "available", lambda: False)
    monkeypatch.setattr(module.pulp.PULP_CBC_CMD, "available", lambda self: False)
    with pytest.raises(CapstanError, match="no solver found"):
        solve(EASY)
    assert second_opinion(EASY) is None


def test_the_second_opinion_of_an_infeasible_programme_is_none() -> None:
    assert second_opinion(replace(EASY, pools=(replace(POOL, devices=3),))) is None
    assert second_opinion(EASY) == pytest.approx(4.0)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    solve(EASY, ties="all")
    second_opinion(EASY)
    assert capfd.readouterr().out == ""


def test_a_tiny_load_still_needs_a_replica() -> None:
    """1e-5 replicas of work is far above the solver's tolerance; the demand is not carried by nothing."""
    data = replace(EASY, columns=(), families=(OptimisticFamily("f", "m", "p", 2, (("chat", 1e-5),)),))
    assert (solve(data).value, solve(data).replicas) == (2.0, {"f": 1})


def test_of_equal_plans_the_one_whose_rented_devices_work_is_taken() -> None:
    """A node of 8 is paid for; one replica of 4 and one of 8 carry the most headroom that counts alike."""
    pool = Pool("p", 8, 8, 1.0, "node")
    columns = (Column("small", "m", "p", 4, (("chat", 4.0),)), Column("large", "m", "p", 8, (("chat", 4.0),)))
    assert solve(Programme((pool,), columns, (), ("chat",), "cost"), ties="all").replicas == {"large": 1}
