"""`make_plan`: the straight line from a declaration to a certified plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from planner.answers.resolve import Solved, solved
from planner.assemble import assemble
from planner.facts import Machine
from planner.problem import pose
from specs.deployment import DeploymentSpec
from specs.errors import NoPlanError
from specs.plan import Plan


def make_plan(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
    version: str = "",
    machine: Machine | None = None,
) -> Plan:
    """The cheapest certified plan for `spec`; trace files are found relative to `base_dir`.

    `progress` is told what is being done. `version` is written into the plan. `machine` replaces the catalogue's facts
    and profile of its device. Raises `InputError` for a spec that contradicts the catalogue or its traces,
    `NoPlanError` where no plan satisfies it.
    """
    plan, _ = plan_and_search(spec, base_dir, seed=seed, progress=progress, version=version, machine=machine)
    return plan


def plan_and_search(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
    version: str = "",
    machine: Machine | None = None,
    time_limit_s: float | None = None,
) -> tuple[Plan, Solved]:
    """As `make_plan`, with the search that found it, from which further questions are answered.

    After `time_limit_s` nothing is improved any more: the first certified plan is taken, and its certificate says so.
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    if spec.choices.stated.keys() >= spec.models.keys():
        return _stated(spec, base_dir, seed=seed, progress=progress, version=version, machine=machine)
    if spec.choices.stated:
        from planner.stated.beside import planned_beside

        return planned_beside(
            spec, base_dir, seed=seed, progress=progress, version=version, machine=machine, deadline=deadline
        )
    progress("reading models, devices and traffic")
    problem = pose(spec, base_dir, seed=seed, machine=machine)
    found = solved(problem, progress, deadline=deadline)
    if found.gave_up is not None:
        raise found.gave_up
    if found.decision is None:
        from planner.answers.conflict import explain_conflict

        raise explain_conflict(problem, progress)
    return assemble(found.problem, found.master, found.decision, version), found


def _stated(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int,
    progress: Callable[[str], None],
    version: str,
    machine: Machine | None,
) -> tuple[Plan, Solved]:
    """The deployment that `spec` states, where it keeps every promise; `NoPlanError` names those that it breaks."""
    from planner.stated.estimate import estimate

    found = estimate(spec, base_dir, seed=seed, progress=progress, version=version, machine=machine)
    if found.broken:
        raise NoPlanError(
            "the stated deployment does not keep every promise; `capstan estimate` shows what it does",
            conflict=found.broken,
            mends=found.mends,
        )
    standing = found.standing
    return found.plan, Solved(standing.problem, standing.problem, standing.master, standing.decision)
