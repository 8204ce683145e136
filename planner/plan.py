"""`make_plan`: the straight line from a declaration to a certified plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.assemble import assemble
from planner.facts import Machine
from planner.optimize.conflict import explain_conflict
from planner.problem import pose
from specs.deployment import DeploymentSpec
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
    progress("reading models, devices and traffic")
    problem = pose(spec, base_dir, seed=seed, machine=machine)
    master = problem.master(progress)
    decision = master.decide() if problem.families else None
    if decision is None:
        raise explain_conflict(problem, progress)
    return assemble(problem, master, decision, version)
