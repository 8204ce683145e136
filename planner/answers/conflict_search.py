"""Questions about changed specs, each answered by planning again: on part of the window, or on all of it.

Most questions ask for any plan, not for the best one, and on the busiest part of the window; what is then offered as a
mend is judged on all of it. How often a question may simulate is limited, so that the same spec gets the same answer on
every machine; one that runs out counts as answered by no.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from planner.answers.floors import Floors
from planner.answers.resolve import Drawn, Solved, changed, solved, sources
from planner.optimize.decision import Decision
from planner.problem import Problem, compressed, drawn_traffic, in_blocks
from planner.simulate import declared_workload
from specs.deployment import DeploymentSpec
from specs.errors import InputError

T = TypeVar("T")
Progress = Callable[[str], None]

MOST_REQUESTS, LEAST_S = 15_000, 30.0  # of the part of the window that is searched on
MOST_JUDGED = 200_000  # requests of the window that mends are judged on
LONGEST_S = 20.0  # of a question, from which on any plan that keeps every promise answers it
TO_ANSWER = 120  # simulations that one question may take; one takes 0.003 to 0.05 s
REQUESTS_OF_ONE = 20_000  # of the window of a whole plan, which counts for one more by so many
STRIDES = (0, 1, 3, 7)  # which of ever softer options are judged, until one holds
CUT_SHORT = " (a smaller change may do: the search was cut short)"


def first_that_holds(options: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first of `options` that holds, by bisection: where one holds, all later ones do. None where none does."""
    low, high = -1, len(options)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(options[middle]) else (middle, high)
    return options[high] if high < len(options) else None


class _ExhaustedError(Exception):
    """A question has simulated all that it may."""


@dataclass
class Search:
    """What may still be simulated, and what was drawn and solved so far."""

    problem: Problem
    progress: Progress
    left: int  # simulations that may still be run
    exhausted: bool = False  # whether a question has run out of them
    _drawn: dict[str, Drawn] = field(default_factory=dict)
    _known: dict[int, Solved] = field(default_factory=dict)  # by requests: a search that others take over from
    _quantiles: dict[int, Floors] = field(default_factory=dict)  # by requests

    @cached_property
    def _part(self) -> Problem:
        return self._cut(MOST_REQUESTS)

    @cached_property
    def _whole(self) -> Problem:
        return self._cut(MOST_JUDGED)

    def plan(self, spec: DeploymentSpec, *, whole: bool = False, best: bool = False) -> Decision | None:
        """A plan of a changed spec (`best`: the cheapest), or None where there is none or the question ran out.

        On the busiest part of the window, out of what is left of the simulations, or on the `whole` of it.
        """
        if not whole and self.left <= 0:
            self.exhausted = True
            return None
        problem = self._posed(spec, whole)
        if problem is None or (problem := self._floors(problem).kept(problem)) is None:
            return None
        self.left -= 0 if whole else 1  # a question takes time even where it simulates nothing
        allowed = TO_ANSWER if whole else min(TO_ANSWER, self.left)

        def count(step: str) -> None:
            nonlocal allowed
            if not step.startswith("simulating"):
                return
            cost = 1 + ("whole plan" in step) * len(problem.workload) // REQUESTS_OF_ONE
            allowed -= cost
            self.left -= 0 if whole else cost
            if allowed < 0:
                raise _ExhaustedError

        try:  # what is offered has to come out when it is planned for, so it is judged as any spec is planned
            like = None if whole else self._known.get(id(problem.workload))
            end = time.monotonic() + LONGEST_S
            found = solved(problem, count, like=like, any_plan=not (best or whole), deadline=end)
        except _ExhaustedError:
            self.exhausted = True
            return None
        if not whole:
            self._known.setdefault(id(problem.workload), found)
        if found.decision is not None and found.decision.status == "time limit":
            self.exhausted = True
        return found.decision

    def rate_matters(self) -> bool:
        """Whether fewer requests could help: not where one alone already takes too long on every configuration."""
        return self._floors(self._part).kept(self._part) is not None

    def _floors(self, problem: Problem) -> Floors:
        """What is known of the latencies of these requests without a queue."""
        return self._quantiles.setdefault(id(problem.workload), Floors(problem.workload))

    def first(self, options: Sequence[T], spec_at: Callable[[T], DeploymentSpec], *, last: bool = False) -> T | None:
        """The first of `options`, ever softer, that has a plan: found on part of the window, judged on all of it.

        `last`: the last one is known to have a plan there, and is judged where the search runs out.
        """
        found = first_that_holds(range(len(options)), lambda index: self.plan(spec_at(options[index])) is not None)
        if found is None:
            return self.judged(options[-1:], spec_at) if last else None
        return self.judged(options[found:], spec_at)

    def judged(self, options: Sequence[T], spec_at: Callable[[T], DeploymentSpec]) -> T | None:
        """The first of `options`, or the next softer ones in growing strides, that has a plan on the whole window."""
        likely = (options[index] for index in STRIDES if index < len(options))
        return next((option for option in likely if self.plan(spec_at(option), whole=True)), None)

    def mended(self, search: Callable[[], str | None]) -> str | None:
        """The mend that `search` finds, with a remark where one of its questions ran out."""
        self.exhausted = False
        mend = search()
        return mend + CUT_SHORT if mend is not None and self.exhausted else mend

    def _posed(self, spec: DeploymentSpec, whole: bool) -> Problem | None:
        """The problem of a changed spec, None where the change contradicts something else that the user wrote."""
        base, most = (self._whole, MOST_JUDGED) if whole else (self._part, MOST_REQUESTS)
        try:
            drawn = None if sources(spec) == sources(base.spec) else self._draw(spec, most)
            return changed(base, spec, drawn=drawn)
        except InputError:
            return None

    def _cut(self, most: int) -> Problem:
        """The problem on the busiest part of its window, with about so many requests at most."""
        base = self.problem
        if len(base.declared) <= most:
            return base
        declared, windows = self._draw(base.spec, most)
        workload = compressed(declared, base.spec.limits.utilisation or 1.0)
        return replace(base, declared=declared, workload=workload, windows=windows)

    def _draw(self, spec: DeploymentSpec, most: int) -> Drawn:
        """The busiest part of the window, with about so many requests of the declared traffic at most."""
        base = self.problem
        share = min(1.0, most / len(base.declared))
        key = str((share, sources(spec)))
        if key not in self._drawn:
            if share == 1.0:
                self._drawn[key] = drawn_traffic(spec, base.base_dir, base.facts, base.seed)
            else:
                seconds = max(LEAST_S, base.declared.horizon_s * share)
                declared, windows = declared_workload(spec, base.base_dir, seconds=seconds, seed=base.seed)
                self._drawn[key] = in_blocks(declared, base.facts), windows
        return self._drawn[key]
