"""`estimate`: a stated deployment from its declaration to a `Plan` document, with nothing searched."""

from __future__ import annotations

from pathlib import Path

from planner.facts import Machine
from planner.problem import pose
from planner.stated.deployment import Progress, standing
from planner.stated.document import StatedPlan, document_of
from planner.stated.pins import with_groups
from planner.stated.slack import slack_of
from specs.deployment import DeploymentSpec


def estimate(
    spec: DeploymentSpec,
    base_dir: str | Path,
    *,
    seed: int = 0,
    progress: Progress = lambda text: None,
    version: str = "",
    machine: Machine | None = None,
) -> StatedPlan:
    """What the deployment that `spec` states does under its traffic; trace files are found relative to `base_dir`.

    Raises `InputError` where something is left to choose, or where the groups contradict the catalogue or the traffic.
    """
    progress("reading models, devices and traffic")
    problem = pose(with_groups(spec, base_dir), base_dir, seed=seed, machine=machine)
    stated = standing(problem, progress)
    return document_of(stated, slack_of(stated, progress), version)
