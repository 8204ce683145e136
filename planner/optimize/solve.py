"""The only place that talks to a solver. Statuses are read as they are, bounds are the solver's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pulp

from planner.optimize.programme import (
    EQUAL,
    Programme,
    TieBreak,
    Ties,
    build,
    headroom_is_carried,
    tie_breaks,
    used_groups_are_counted,
)
from specs.errors import CapstanError

RELATIVE_GAP = 1e-6


@dataclass(frozen=True)
class Solution:
    """Integer replicas by column key and nodes by pool; `status` is the true one."""

    status: str  # optimal | infeasible | time limit
    value: float
    bound: float
    replicas: dict[str, int]
    nodes: dict[str, int]
    solver: str


def solve(programme: Programme, *, ties: Ties = "any", time_limit_s: float = 30.0) -> Solution:
    """Minimise the programme's quantity.

    `ties`: "any" plan of that value; one that is "operable" (the most headroom, then few groups and replicas); or "all"
    tie-breaks in turn, so that equal inputs give equal plans.

    Raises `CapstanError` when no solver works at all. An infeasible programme is a `Solution` with that status.
    """
    problem, variables = build(programme)
    solver, status, bound = _run(problem, time_limit_s)
    if status == "infeasible":
        return Solution("infeasible", float("inf"), float("inf"), {}, {}, solver)
    value = float(pulp.value(problem.objective) or 0.0)
    replicas, nodes = _values(variables.replicas), _values(variables.nodes)
    if ties != "any":
        for family in (headroom_is_carried, used_groups_are_counted):
            for name, constraint in family(programme, variables):
                problem += constraint, name
        reached = TieBreak(problem.objective, EQUAL)
        for index, tie_break in enumerate(tie_breaks(programme, variables, ties)):
            level = float(pulp.value(reached.goal) or 0.0)
            problem += reached.goal <= level + reached.slack * max(1.0, abs(level)), f"keep_{index}"
            problem.setObjective(tie_break.goal)
            _, tie_status, _ = _run(problem, time_limit_s)
            if tie_status != "optimal":  # without a proof the tie-break would not be reproducible
                status = "time limit" if status == "optimal" else status
                break
            replicas, nodes = _values(variables.replicas), _values(variables.nodes)
            reached = tie_break
    return Solution(
        status=status,
        value=value,
        bound=min(bound, value),
        replicas=replicas,
        nodes=nodes,
        solver=solver,
    )


def second_opinion(programme: Programme, *, time_limit_s: float = 10.0) -> float | None:
    """The optimum that CBC finds, or None where CBC is not there or did not finish: HiGHS has been wrong before."""
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s)
    if not solver.available():
        return None
    problem, _ = build(programme)
    problem.solve(solver)
    if problem.sol_status != pulp.LpSolutionOptimal:  # status alone says Optimal after a time limit, too
        return None
    return float(pulp.value(problem.objective) or 0.0)


def minimise(problem: Any, time_limit_s: float) -> tuple[str, str, float]:
    """Solver name, true status and bound of any PuLP problem that minimises; its variables hold the values.

    Raises `CapstanError` when no solver works, or none found a plan in time.
    """
    return _run(problem, time_limit_s)


def _values(variables: dict[str, Any]) -> dict[str, int]:
    """The solver's values, those that are not zero."""
    rounded = {key: round(variable.varValue or 0.0) for key, variable in variables.items()}
    return {key: value for key, value in rounded.items() if value}


def _run(problem: Any, time_limit_s: float) -> tuple[str, str, float]:
    """Solver name, true status, bound."""
    # The feasibility jump heuristic takes half of the time of programmes as small as these and finds nothing the tree
    # does not: 0.37 s against 0.21 s over the 35 solves of specs/examples/chat-70b.yaml.
    highs = pulp.HiGHS(
        msg=False,
        threads=1,
        timeLimit=time_limit_s,
        gapRel=RELATIVE_GAP,
        mip_heuristic_run_feasibility_jump=False,
    )
    if highs.available():
        with _silent_stdout():
            problem.solve(highs)
        name = f"HiGHS {_highs_version()}"
        bound = float(problem.solverModel.getInfo().mip_dual_bound)
    else:
        cbc = pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=RELATIVE_GAP)
        if not cbc.available():
            raise CapstanError("no solver found: install highspy, or a PuLP that brings CBC")
        problem.solve(cbc)
        name = "CBC"
        bound = float(pulp.value(problem.objective) or 0.0) if problem.sol_status == pulp.LpSolutionOptimal else 0.0
    if problem.sol_status == pulp.LpSolutionOptimal:
        return name, "optimal", bound
    if problem.sol_status == pulp.LpSolutionIntegerFeasible:
        return name, "time limit", bound
    if problem.status == pulp.LpStatusInfeasible:
        return name, "infeasible", float("inf")
    raise CapstanError(f"{name} stopped without a plan ({pulp.LpStatus[problem.status]}) after {time_limit_s:g} s")


@cache
def _highs_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("highspy")


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints its banner past Python's sys.stdout; stdout belongs to the command's own document."""
    saved = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)
