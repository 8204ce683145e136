"""Deciding a posed problem, whatever its objective. The largest multiple of the traffic takes several rounds.

Prices hold at the traffic they were simulated at. So the multiple s is moved: at s times the traffic the programme
says which multiple of that the fleet carries, until that is one to `CLOSE`; then the cheapest plan for s times the
traffic is decided as any plan is; while simulation refutes that, s gives way, until it is known to `CLOSE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.optimize.decision import Decision
from planner.optimize.master import Master
from planner.optimize.parts import Quantity
from planner.problem import BUSIEST_S, Problem, compressed, drawn_traffic, longest_request, pose
from specs.errors import NoPlanError

Progress = Callable[[str], None]

CLOSE = 0.02  # of the multiple
FIRST, STEP = 0.88, 0.9  # of what prices promise, which are a little bold; of what did not hold
MOST_REQUESTS, LEAST_S = 60_000, 60.0  # of the window at many times the traffic
MOST_ROUNDS = 16
DIGITS = 4  # of a multiple, so that it reads as it was planned for


@dataclass(frozen=True)
class Decided:
    """The problem that was decided in the end (of `traffic`: at the multiple that was found), and how."""

    problem: Problem
    master: Master
    decision: Decision | None


def decided(
    problem: Problem,
    progress: Progress = lambda text: None,
    *,
    any_plan: bool = False,
    master_of: Callable[[Problem, Progress], Master] = Problem.master,
) -> Decided:
    """Decide `problem`; no decision where there is no plan. `master_of` makes the master of a problem.

    Raises `NoPlanError` where the search gave up, which proves nothing.
    """
    if problem.template.quantity == "traffic":
        return _largest_multiple(problem, progress, any_plan, master_of)
    master = master_of(problem, progress)
    found = master.decide(any_plan=any_plan) if problem.families or problem.role_families else None
    if found is not None and not any_plan and master.template.worth and not found.served:
        found = _cheapest_that_serves_all(problem, found, progress, master_of)
    return Decided(problem, master, found)


def _cheapest_that_serves_all(
    problem: Problem, found: Decision, progress: Progress, master_of: Callable[[Problem, Progress], Master]
) -> Decision:
    """Where everything is served, nothing is left to maximise: of such plans, the cheapest one.

    The search for the most stops at a plan that serves all, and never prices what would serve it for less.
    """
    priced = all(pool.price is not None for pool in problem.template.pools)
    template = replace(problem.template, quantity="cost" if priced else "gpus", worth={})
    try:
        cheaper = replace(master_of(replace(problem, template=template), progress), bounded=False).decide()
    except NoPlanError:
        return found
    if cheaper is None:
        return found
    proof = {name: getattr(found, name) for name in ("value", "bound", "priced_bound", "second_opinion", "refuted")}
    return replace(cheaper, **proof)


def _largest_multiple(
    problem: Problem, progress: Progress, any_plan: bool, master_of: Callable[[Problem, Progress], Master]
) -> Decided:
    master = master_of(problem, progress)
    if not (problem.families or problem.role_families):
        return Decided(problem, master, None)
    bound = -master.bound()[0]
    multiple, carried = 1.0, -master.relative_value()
    for _ in range(MOST_ROUNDS):
        if carried <= 0.0 or 1.0 <= carried <= 1.0 + CLOSE or master.late:
            break
        multiple = _rounded(min(bound, multiple * carried))
        progress(f"planning for {multiple:g} times the traffic")
        carried = -master_of(at_multiple(problem, multiple), progress).relative_value()
    if carried <= 0.0:
        return Decided(problem, master, None)
    best = multiple * max(1.0, carried)
    held = _highest_that_holds(problem, multiple, progress, any_plan, master_of)
    if held is None:
        return Decided(problem, master, None)
    multiple, decision = held.multiple, held.decided.decision
    if decision is None:
        raise ValueError("what holds has a decision")
    decision = replace(
        decision,
        value=multiple,
        bound=max(bound, multiple),
        priced_bound=max(best, multiple),
        multiple=multiple,
        notes=(*decision.notes, f"planned for, and predicted at, {multiple:g} times the declared traffic"),
    )
    as_declared = replace(held.decided.problem, spec=problem.spec, template=problem.template)
    return Decided(as_declared, held.decided.master, decision)


@dataclass(frozen=True)
class _Held:
    """A multiple of the traffic, and the cheapest plan that simulation does not refute there."""

    multiple: float
    decided: Decided


def _highest_that_holds(
    problem: Problem,
    multiple: float,
    progress: Progress,
    any_plan: bool,
    master_of: Callable[[Problem, Progress], Master],
) -> _Held | None:
    """Down from `multiple` until a plan holds, then up again between that and the last one that did not."""
    held: _Held | None = None
    failed = multiple * (1.0 + CLOSE)
    multiple = _rounded(FIRST * multiple)
    for _ in range(MOST_ROUNDS):
        found = _cheapest_at(problem, multiple, progress, any_plan, master_of)
        if found.decision is not None:
            held = _Held(multiple, found)
        else:
            failed = multiple
        if held is not None and (any_plan or found.master.late or failed <= held.multiple * (1.0 + CLOSE)):
            break
        multiple = _rounded(multiple * STEP if held is None else math.sqrt(held.multiple * failed))
    return held


def _cheapest_at(
    problem: Problem,
    multiple: float,
    progress: Progress,
    any_plan: bool,
    master_of: Callable[[Problem, Progress], Master],
) -> Decided:
    progress(f"planning for {multiple:g} times the traffic")
    posed = _cheapest(at_multiple(problem, multiple))
    master = master_of(posed, progress)
    try:
        return Decided(posed, master, master.decide(any_plan=any_plan))
    except NoPlanError:  # the search gave up: no plan is known here
        return Decided(posed, master, None)


def _rounded(multiple: float) -> float:
    return float(f"{multiple * (1.0 - 0.5 * 10.0**-DIGITS):.{DIGITS}g}")


def _cheapest(problem: Problem) -> Problem:
    """The problem of the cheapest plan for the same traffic (of fewest devices, where they have no price)."""
    quantity: Quantity = "cost" if problem.template.priced else "gpus"
    return replace(problem, template=replace(problem.template, quantity=quantity))


def at_multiple(problem: Problem, multiple: float) -> Problem:
    """The problem at so many times its traffic, drawn anew."""
    if multiple == 1.0:
        return problem
    from planner.plan_simulation.traffic import at_rate  # reads plans, too: not needed to plan

    spec = at_rate(problem.spec, problem.base_dir, multiple)
    rate_per_s = multiple * len(problem.declared) / problem.declared.horizon_s
    seconds = min(BUSIEST_S, max(LEAST_S, MOST_REQUESTS / rate_per_s))
    declared, windows = drawn_traffic(spec, problem.base_dir, problem.facts, problem.seed, seconds)
    longest = {name: longest_request(windows, classes) for name, classes in problem.classes_of.items()}
    every = (*problem.families, *problem.role_families)
    if any(longest[family.model] > family.max_model_len for family in every):
        return pose(
            spec, problem.base_dir, seed=problem.seed, machine=problem.machine, seconds=seconds, facts=problem.facts
        )
    return replace(
        problem,
        spec=spec,
        declared=declared,
        workload=compressed(declared, spec.limits.utilisation or 1.0),
        windows=windows,
    )
