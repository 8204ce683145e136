"""The problem that a plan was made for, from its document: the spec and every fact that it embeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from planner.cost.margin import margin_of
from planner.facts import load_facts
from planner.plan_simulation.traffic import planned_seed, trace_folder
from planner.problem import Problem, pose
from specs.deployment import DeploymentSpec, refuse_unhonoured
from specs.deployment.stated import refuse_stated
from specs.plan import Plan


def problem_of(plan: Plan, beside: Path) -> Problem:
    """The planning problem of `plan`, whose file stands in the folder `beside`.

    `InputError` where a trace is gone or is another one, or where the spec states what this version does not plan for.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    refuse_unhonoured(spec)
    refuse_stated(spec, "this question")
    folder = trace_folder(plan, spec, beside)
    models = {
        name: model.model_copy(update={"architecture": plan.architectures[name]}) for name, model in spec.models.items()
    }
    spec = spec.model_copy(update={"models": models})
    facts = replace(
        load_facts(spec, folder),
        devices=dict(plan.devices),
        profiles=dict(plan.profiles),
        engines=dict(plan.engines),
        margins={name: margin_of(engine, spec.limits.confidence) for name, engine in plan.engines.items()},
    )
    return pose(spec, folder, seed=planned_seed(plan), facts=facts)
