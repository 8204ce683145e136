"""Solving a programme so that a wrong answer of the solver does not get through.

Solvers decide to a tolerance (HiGHS: 1e-6 of a row), and have been seen to return a wrong optimum where a row holds
coefficients below it beside others of size one: the tiny terms are neither kept nor dropped consistently. So two
programmes are solved in which no coefficient is that small:

    the stricter one   tiny coefficients grow to GRID of their row's largest: its plans satisfy the original rows
    the looser one     tiny coefficients vanish where that widens the row: its bound holds for the original

A plan counts when every original row has been added up again here; a bound counts when no plan that satisfies the rows
lies below it. Where the rows have no tiny coefficients the two are the same programme, and it is solved once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pulp

from planner.optimize.solve import minimise
from specs.errors import CapstanError

GRID = 1e-5  # of a row's largest coefficient; ten times the solver's feasibility tolerance
ROW_TOLERANCE = 1e-6  # of a row's largest term, when rows are added up again
VALUE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Guarded:
    """`values` by variable name satisfy every row; no plan is below `bound`; `refused` says what was not believed."""

    status: str  # optimal | time limit | infeasible
    value: float
    bound: float
    values: dict[str, float]
    solver: str
    refused: tuple[str, ...] = ()


def certified(problem: Any, *, time_limit_s: float = 30.0, most_nodes: int | None = None) -> Guarded:
    """Minimise a PuLP problem; `most_nodes` of the tree is a limit that does not depend on the machine.

    Raises `CapstanError` where no plan that satisfies the rows was found in time; an infeasible programme is a
    `Guarded` with that status.
    """
    if problem.sense != pulp.LpMinimize:
        raise ValueError("certified() minimises; negate the objective")
    stricter = _without_tiny(problem, stricter=True)
    solver, status, bound = minimise(stricter or problem, time_limit_s, most_nodes)
    if status == "infeasible" and stricter is None:
        return Guarded("infeasible", math.inf, math.inf, {}, solver)
    values = _values(stricter or problem)
    refused = []
    if status == "infeasible" or broken_rows(problem, values):
        refused.append(f"{solver}: its plan of the stricter programme does not satisfy the rows")
        solver, status, _ = minimise(problem, time_limit_s, most_nodes)
        values = _values(problem)
        if status == "infeasible":
            return Guarded("infeasible", math.inf, math.inf, {}, solver, tuple(refused))
        if broken := broken_rows(problem, values):
            raise CapstanError(f"{solver} returned a plan that breaks {len(broken)} rows, such as {broken[0]}")
    value = _objective(problem, values)
    if stricter is not None:
        _, loose_status, bound = minimise(_without_tiny(problem, stricter=False) or problem, time_limit_s, most_nodes)
        if loose_status == "infeasible":
            bound = math.inf
    if bound > value + VALUE_TOLERANCE * max(1.0, abs(value)):
        refused.append(f"{solver}: a bound of {bound:.6g} above a plan of {value:.6g} that satisfies every row")
        bound = -math.inf
    bound = min(bound, value)
    proven = value - bound <= VALUE_TOLERANCE * max(1.0, abs(value))
    return Guarded("optimal" if proven else "time limit", value, bound, values, solver, tuple(refused))


def broken_rows(problem: Any, values: dict[str, float]) -> list[str]:
    """Names of the rows, bounds and integralities that `values` do not satisfy, added up one by one in this process."""
    broken = []
    for name, row in problem.constraints.items():
        terms = [coefficient * values[variable.name] for variable, coefficient in row.items()]
        total = math.fsum([*terms, row.constant])
        slack = ROW_TOLERANCE * max([1e-3, *map(abs, terms), abs(row.constant)])
        if (row.sense <= 0 and total > slack) or (row.sense >= 0 and total < -slack):
            broken.append(name)
    for variable in problem.variables():
        value = values[variable.name]
        low = -math.inf if variable.lowBound is None else variable.lowBound
        high = math.inf if variable.upBound is None else variable.upBound
        whole = variable.cat != pulp.LpInteger or value == round(value)
        if not (low - ROW_TOLERANCE <= value <= high + ROW_TOLERANCE and whole):
            broken.append(variable.name)
    return broken


def _without_tiny(problem: Any, *, stricter: bool) -> Any | None:
    """A copy without tiny coefficients, each moved to the side that is asked for; None if there are none."""
    copy = problem.copy()
    found = False
    for name, row in problem.constraints.items():
        if row.sense == pulp.LpConstraintEQ:
            continue
        grid = GRID * max(map(abs, row.values()), default=0.0)
        tiny = {v: c for v, c in row.items() if 0 < abs(c) < grid and v.lowBound is not None and v.lowBound >= 0}
        found |= bool(tiny)
        replaced = {
            variable: (math.copysign(grid, coefficient) if (coefficient * row.sense < 0) == stricter else 0.0)
            for variable, coefficient in tiny.items()
        }
        copy.constraints[name] = pulp.LpConstraint(
            pulp.LpAffineExpression({**dict(row), **replaced}, constant=row.constant), row.sense, name
        )
    return copy if found else None


def _values(problem: Any) -> dict[str, float]:
    """The solver's values; integers are rounded."""
    return {
        variable.name: float(round(variable.varValue or 0.0))
        if variable.cat == pulp.LpInteger
        else (variable.varValue or 0.0)
        for variable in problem.variables()
    }


def _objective(problem: Any, values: dict[str, float]) -> float:
    terms = [coefficient * values[variable.name] for variable, coefficient in problem.objective.items()]
    return math.fsum([*terms, problem.objective.constant])
