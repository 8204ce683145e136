"""The only place that talks to a solver. Statuses are read as they are, bounds are the solver's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulp

from planner.optimize.arrays import HighsModel, Outcome
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
LEAST_USED = 1e-7  # replicas in a relaxation, below which a column counts as unused


CLOCK = "Time limit reached"  # in HiGHS's words
TIE_NODES = 200  # of the tree of each tie-break: what is left then is a matter of taste


@dataclass(frozen=True)
class Solution:
    """Integer replicas by column key and nodes by pool; `status` is the true one."""

    status: str  # optimal | infeasible | time limit
    value: float
    bound: float
    replicas: dict[str, int]
    nodes: dict[str, int]
    solver: str


def solve(
    programme: Programme,
    *,
    ties: Ties = "any",
    time_limit_s: float = 30.0,
    gap: float = RELATIVE_GAP,
    most_nodes: int | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Solution:
    """The best value of the programme's quantity, to a relative `gap`, or as good as `most_nodes` of the tree find it.

    `fixed`: columns whose number of replicas is known.

    `ties`: "any" plan of that value; one that is "operable" (the most headroom, then few groups and replicas); or "all"
    tie-breaks in turn, so that equal inputs give equal plans.

    Raises `CapstanError` when no solver works at all. An infeasible programme is a `Solution` with that status.
    """
    problem, variables = build(programme)
    for key, count in (fixed or {}).items():
        variables.replicas[key].bounds(count, count)
    model = _model(problem, gap, most_nodes)
    found = model.run(time_limit_s)
    if found.status == "no plan" and most_nodes is not None:
        return solve(programme, ties=ties, time_limit_s=time_limit_s, gap=gap, fixed=fixed)
    if found.status == "no plan":
        raise _stopped(model, found, time_limit_s)
    if found.status == "infeasible":
        return Solution("infeasible", float("inf"), float("inf"), {}, {}, model.name)
    status, value = found.status, float(pulp.value(problem.objective) or 0.0)
    replicas, nodes = _values(variables.replicas), _values(variables.nodes)
    if ties != "any":
        families = (headroom_is_carried, used_groups_are_counted)
        model.add([row for family in families for _, row in family(programme, variables)])
        model.limit_nodes(TIE_NODES)
        reached = TieBreak(problem.objective, EQUAL)
        decided = [reached.goal]
        for tie_break in tie_breaks(programme, variables, ties):
            if any(_proportional(tie_break.goal, goal) for goal in decided):
                continue
            decided.append(tie_break.goal)
            level = float(pulp.value(reached.goal) or 0.0)
            model.add([reached.goal <= level + reached.slack * max(1.0, abs(level))])
            model.aim(tie_break.goal)
            ended = model.run(time_limit_s)
            if ended.status not in ("optimal", "node limit"):
                if ended.detail == CLOCK and status == "optimal":  # what the clock stopped is not reproducible
                    status = "time limit"
                break
            replicas, nodes = _values(variables.replicas), _values(variables.nodes)
            reached = tie_break
    return Solution(
        status=status,
        value=value,
        bound=min(found.bound, value),
        replicas=replicas,
        nodes=nodes,
        solver=model.name,
    )


def _proportional(goal: Any, other: Any) -> bool:
    """Whether one goal is a multiple of another one, so that it is decided where that one is."""
    mine, theirs = dict(goal.items()), dict(other.items())
    if not mine or mine.keys() != theirs.keys():
        return not mine
    ratios = [value / theirs[variable] for variable, value in mine.items()]
    return math.isclose(min(ratios), max(ratios), rel_tol=EQUAL)


def relaxation(programme: Programme, *, time_limit_s: float = 30.0) -> tuple[float, frozenset[str]]:
    """The best value of the programme when nothing has to be whole, a bound on it, and what that optimum uses.

    An infeasible one is worth infinity and uses nothing. Raises `CapstanError` where HiGHS is missing or stops early.
    """
    problem, variables = build(programme)
    if not HighsModel.available():
        raise CapstanError("no solver for large programmes found: install highspy")
    model = HighsModel(problem, RELATIVE_GAP, relaxed=True)
    found = _run(model, time_limit_s)
    if found.status == "infeasible":
        return float("inf"), frozenset()
    used = {key for key, variable in variables.replicas.items() if (variable.varValue or 0.0) > LEAST_USED}
    return found.bound, frozenset(used)


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


def minimise(problem: Any, time_limit_s: float, most_nodes: int | None = None) -> tuple[str, str, float]:
    """Solver name, true status and bound of any PuLP problem; its variables hold the values.

    `most_nodes` of the tree is a limit that does not depend on the machine. Raises `CapstanError` when no solver works,
    or none found a plan in time.
    """
    model = _model(problem, RELATIVE_GAP, most_nodes)
    found = _run(model, time_limit_s)
    return model.name, found.status, found.bound


def _values(variables: dict[str, Any]) -> dict[str, int]:
    """The solver's values, those that are not zero."""
    rounded = {key: round(variable.varValue or 0.0) for key, variable in variables.items()}
    return {key: value for key, value in rounded.items() if value}


def _run(model: HighsModel | _CbcModel, time_limit_s: float) -> Outcome:
    """How one run ended. Raises `CapstanError` where it found no plan and did not prove that there is none."""
    found = model.run(time_limit_s)
    if found.status == "no plan":
        raise _stopped(model, found, time_limit_s)
    return found


def _stopped(model: HighsModel | _CbcModel, found: Outcome, time_limit_s: float) -> CapstanError:
    return CapstanError(f"{model.name} stopped without a plan ({found.detail}) after {time_limit_s:g} s")


def _model(problem: Any, gap: float, most_nodes: int | None = None) -> HighsModel | _CbcModel:
    """The problem in HiGHS, or in CBC, which knows no limit of nodes here, where HiGHS is not installed."""
    if HighsModel.available():
        return HighsModel(problem, gap, most_nodes=most_nodes)
    if pulp.PULP_CBC_CMD(msg=False).available():
        return _CbcModel(problem, gap)
    raise CapstanError("no solver found: install highspy, or a PuLP that brings CBC")


class _CbcModel:
    """The same problem in CBC, which starts from nothing each time."""

    name = "CBC"

    def __init__(self, problem: Any, gap: float) -> None:
        self._problem, self._gap = problem.copy(), gap

    def add(self, rows: list[Any]) -> None:
        for row in rows:
            self._problem += row, f"further_{len(self._problem.constraints)}"

    def aim(self, goal: Any) -> None:
        self._problem.setObjective(goal)

    def limit_nodes(self, most_nodes: int | None) -> None:
        """Not known here: the time limit alone ends a run."""

    def run(self, time_limit_s: float) -> Outcome:
        problem = self._problem
        problem.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=self._gap))
        detail = pulp.LpStatus[problem.status]
        if problem.sol_status == pulp.LpSolutionOptimal:
            return Outcome("optimal", float(pulp.value(problem.objective) or 0.0), detail)
        if problem.sol_status == pulp.LpSolutionIntegerFeasible:
            return Outcome("time limit", 0.0, detail)
        if problem.status == pulp.LpStatusInfeasible:
            return Outcome("infeasible", float("inf"), detail)
        return Outcome("no plan", 0.0, detail)
