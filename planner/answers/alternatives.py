"""The next-best plans that are really different: each lacks something that every better one uses.

The structures that were found are cut off one by one. A plan is different from another if it does without at least one
of its elements (replicas of a model in a pool with a layout); the best plan without a set of elements is found by
solving again, so the search branches on what to do without: the best-first tree of hitting sets (Reiter, A theory of
diagnosis from first principles, 1987) over the k-best scheme of Lawler.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from planner.answers.resolve import Progress, Solved, solved, without
from planner.answers.structure import Element, element_of, elements
from planner.optimize.master import Decision

MOST_SOLVES = 24


@dataclass(frozen=True)
class Alternatives:
    """Plans in order of value, the best first; `complete`: no different plan of better value was left out."""

    plans: tuple[Decision, ...]
    complete: bool


@dataclass(order=True)
class _Node:
    rank: float  # the lower, the better
    order: int
    cut: frozenset[Element] = field(compare=False)
    decision: Decision = field(compare=False)


def alternatives(
    own: Solved,
    count: int,
    progress: Progress = lambda text: None,
    at: Callable[[int, int], None] = lambda done, of: None,
) -> Alternatives:
    """The `count` next-best different plans of a decided problem, each simulated whole; fewer where there are no more.

    At most `MOST_SOLVES` problems are solved for them. `at` is told how many plans are found.
    """
    if own.decision is None:
        return Alternatives((), True)
    search = _Search(own, progress)
    known = [elements(own.decision)]
    search.branch(frozenset(), known[0])
    while search.open and len(known) <= count:
        at(len(known) - 1, count)
        node = heapq.heappop(search.open)
        seen = next((structure for structure in known if structure <= elements(node.decision)), None)
        if seen is None:
            seen = elements(node.decision)
            known.append(seen)
        if len(known) <= count:
            search.branch(node.cut, seen)
    return Alternatives(_different(own.decision, search.found, count), not search.cut_short)


def _different(own: Decision, found: list[_Node], count: int) -> tuple[Decision, ...]:
    """The best of all plans that were found, each different from the better ones.

    Not all searches reach their optimum, so one that may do with less has been seen to find more.
    """
    chosen = [own]
    for node in sorted(found):
        if len(chosen) <= count and not any(elements(plan) <= elements(node.decision) for plan in chosen):
            chosen.append(node.decision)
    return tuple(chosen[1:])


@dataclass
class _Search:
    own: Solved
    progress: Progress
    open: list[_Node] = field(default_factory=list)
    found: list[_Node] = field(default_factory=list)
    tried: set[frozenset[Element]] = field(default_factory=set)
    solves: int = 0
    cut_short: bool = False

    def branch(self, cut: frozenset[Element], structure: frozenset[Element]) -> None:
        """Solve without one more element, for each of `structure`."""
        for element in sorted(structure):
            wanted = cut | {element}
            if wanted in self.tried:
                continue
            if self.solves >= MOST_SOLVES:
                self.cut_short = True
                return
            self.tried.add(wanted)
            self.solves += 1
            decision = self._solve(wanted)
            if decision is not None:
                rank = -decision.value if self._maximises else decision.value
                node = _Node(rank, self.solves, wanted, decision)
                self.found.append(node)
                heapq.heappush(self.open, node)

    @property
    def _maximises(self) -> bool:
        return self.own.asked.spec.objective.sense == "maximise"

    def _solve(self, cut: frozenset[Element]) -> Decision | None:
        several = len(self.own.asked.spec.models) > 1
        self.progress("without " + " and ".join(element.text(models=several) for element in sorted(cut)))
        problem = without(self.own.asked, lambda family: element_of(family) in cut)
        return solved(problem, self.progress, like=self.own).decision
