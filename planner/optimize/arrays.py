"""A PuLP problem as arrays in HiGHS: passed once, then given further rows and other goals, and solved again.

PuLP stays the language in which programmes are written. Its own interface to HiGHS takes a call for every variable and
every row, and starts from nothing each time: of 430 solves of one query that was more than the solving itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pulp

Status = Literal["optimal", "time limit", "node limit", "infeasible", "no plan"]

# The feasibility jump heuristic takes half of the time of programmes as small as these and finds nothing the tree
# does not: 0.37 s against 0.21 s over the 35 solves of specs/examples/chat-70b.yaml.
OPTIONS = {"output_flag": False, "threads": 1, "mip_heuristic_run_feasibility_jump": False}


@dataclass(frozen=True)
class Outcome:
    """How a run ended; the values stand in the problem's variables. `detail` is the solver's own word."""

    status: Status
    bound: float  # no plan is better, by the solver's own word
    detail: str = ""


class HighsModel:
    """One PuLP problem in one HiGHS object.

    The problem's variables come in the order of their names, as PuLP passes them; later ones follow. `relaxed`: none
    has to be whole. `most_nodes`: of the branch-and-bound tree, a limit that does not depend on the machine.
    """

    @staticmethod
    def available() -> bool:
        """Whether HiGHS is installed."""
        return importlib.util.find_spec("highspy") is not None

    def __init__(
        self, problem: Any, relative_gap: float, *, relaxed: bool = False, most_nodes: int | None = None
    ) -> None:
        import highspy

        self.name = f"HiGHS {_version()}"
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in {**OPTIONS, "mip_rel_gap": relative_gap}.items():
            self._highs.setOptionValue(option, value)
        self.limit_nodes(most_nodes)
        self._infinite = highspy.kHighsInf
        self._states: dict[Any, Status] = {
            highspy.HighsModelStatus.kOptimal: "optimal",
            highspy.HighsModelStatus.kInfeasible: "infeasible",
            highspy.HighsModelStatus.kUnboundedOrInfeasible: "infeasible",
            highspy.HighsModelStatus.kTimeLimit: "time limit",
            highspy.HighsModelStatus.kIterationLimit: "time limit",
            highspy.HighsModelStatus.kSolutionLimit: "node limit",
            highspy.HighsModelStatus.kInterrupt: "time limit",
        }
        self._variables: list[Any] = []
        self._priced: list[Any] = []
        self._place: dict[int, int] = {}
        self._sign, self._constant, self._relaxed = 1.0, 0.0, relaxed
        self._pass(problem)

    def _pass(self, problem: Any) -> None:
        """The whole problem in one call."""
        # a problem without variables is not "empty" to HiGHS, whatever its rows say, when it has one that is fixed
        low, high, whole = self._take(problem.variables() or [pulp.LpVariable("nothing", 0, 0)])
        self._priced = list(problem.constraints.values())
        starts, places, values, least, most = self._rows(self._priced)
        self._sign = -1.0 if problem.sense == pulp.LpMaximize else 1.0
        cost = self._cost(problem.objective)
        self._highs.passModel(
            len(cost), len(least), len(values), 2, 1, 0.0, cost, low, high, least, most, starts, places, values, whole
        )  # 2: by row, 1: minimise

    def _take(self, variables: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Give variables their places; their lower and upper bounds, and whether they are whole."""
        for variable in variables:
            self._place[id(variable)] = len(self._variables)
            self._variables.append(variable)
        infinite = self._infinite
        low = [-infinite if v.lowBound is None else v.lowBound for v in variables]
        high = [infinite if v.upBound is None else v.upBound for v in variables]
        whole = np.array([not self._relaxed and v.cat == pulp.LpInteger for v in variables], np.int32)
        return np.array(low, np.float64), np.array(high, np.float64), whole

    def _rows(self, rows: Iterable[Any]) -> tuple[Any, ...]:
        """Starts, places, coefficients, least and most of rows; every variable has its place."""
        place, infinite = self._place, self._infinite
        starts: list[int] = []
        places: list[int] = []
        values: list[float] = []
        least: list[float] = []
        most: list[float] = []
        for row in rows:
            starts.append(len(values))
            places += [place[id(variable)] for variable in row.keys()]  # noqa: SIM118 - rows are not dictionaries
            values += row.values()
            right = -row.constant
            least.append(-infinite if row.sense == pulp.LpConstraintLE else right)
            most.append(infinite if row.sense == pulp.LpConstraintGE else right)
        return (
            np.array(starts, np.int32),
            np.array(places, np.int32),
            np.array(values, np.float64),
            np.array(least, np.float64),
            np.array(most, np.float64),
        )

    def _cost(self, goal: Any) -> Any:
        cost = np.zeros(len(self._variables))
        for variable, coefficient in goal.items():
            cost[self._place[id(variable)]] = self._sign * coefficient
        self._constant = float(goal.constant)
        return cost

    def add(self, rows: Sequence[Any]) -> None:
        """Further rows; variables in them that are new come after all others."""
        new = {id(v): v for row in rows for v in row.keys() if id(v) not in self._place}  # noqa: SIM118
        self._extend(list(new.values()))
        self._priced += rows
        starts, places, values, least, most = self._rows(rows)
        self._highs.addRows(len(least), least, most, len(values), starts, places, values)

    def _extend(self, variables: list[Any]) -> None:
        if not variables:
            return
        first, count = len(self._variables), len(variables)
        low, high, whole = self._take(variables)
        empty = np.zeros(0, np.int32)
        self._highs.addCols(count, np.zeros(count), low, high, 0, np.zeros(count, np.int32), empty, np.zeros(0))
        where = np.flatnonzero(whole).astype(np.int32) + first
        self._highs.changeColsIntegrality(len(where), where, np.ones(len(where), np.uint8))

    def aim(self, goal: Any) -> None:
        """Another goal, minimised; it replaces the problem's objective here, not in the problem."""
        self._extend([v for v in goal.keys() if id(v) not in self._place])  # noqa: SIM118
        self._sign = 1.0
        cost = self._cost(goal)
        self._highs.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)

    def limit_nodes(self, most_nodes: int | None) -> None:
        """Of the tree of every run from now on."""
        if most_nodes is not None:
            self._highs.setOptionValue("mip_max_nodes", most_nodes)

    def run(self, time_limit_s: float) -> Outcome:
        """Solve, and leave values in the variables where there are any, and prices in the rows where none is whole."""
        spent_s = self._highs.getRunTime() if self._continuous else 0.0  # the simplex method counts earlier runs, too
        self._highs.setOptionValue("time_limit", spent_s + time_limit_s)
        self._highs.run()
        state = self._highs.getModelStatus()
        status: Status = self._states.get(state, "no plan")
        detail = self._highs.modelStatusToString(state)
        if status == "infeasible":
            return Outcome("infeasible", math.inf, detail)
        info = self._highs.getInfo()
        if status == "no plan" or info.primal_solution_status != 2:  # 2: it satisfies the rows
            return Outcome("no plan", -math.inf, detail)
        solution = self._highs.getSolution()
        for variable, value in zip(self._variables, solution.col_value, strict=True):
            variable.varValue = value
        if self._continuous:
            for row, price in zip(self._priced, solution.row_dual, strict=True):
                row.pi = price
        return Outcome(status, self._bound(info), detail)

    def _bound(self, info: Any) -> float:
        found = info.objective_function_value if self._continuous else info.mip_dual_bound
        return self._sign * float(found) + self._constant

    @property
    def _continuous(self) -> bool:
        return self._relaxed or not any(variable.cat == pulp.LpInteger for variable in self._variables)


@cache
def _version() -> str:
    return importlib.metadata.version("highspy")
