"""Measurements that are there already, of `capstan verify`, guidellm or `vllm bench serve`, beside predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specs.errors import InputError

if TYPE_CHECKING:
    from planner.simulate import Workload
    from specs.deployment import DeploymentSpec
    from specs.measurements import Load, Measurements
    from specs.plan import Plan


def read_result(path: Path, plan: Plan | None = None) -> Measurements:
    """Measurements of any known kind; those that do not say where they were taken were taken on the plan's device."""
    from specs.measurements import Environment
    from specs.results import read_result

    group = plan.groups[0] if plan is not None else None
    return read_result(path, Environment(device=group.device, engine=group.engine) if group is not None else None)


def compare_result(path: Path, plan: Plan, group_id: str | None) -> dict[str, Any]:
    """Every load of the file, predicted from the very requests it holds: sizes, and times or clients.

    A class that the plan knows is judged by its SLO; so is any, where the plan has one class only.
    """
    from capstan.commands.verify_traffic import limits_in_words
    from planner.estimate.observed import difference, measured_summary
    from planner.plan_simulation.simulate import margin_notes
    from specs.deployment import DeploymentSpec

    seen = read_result(path, plan)
    spec = DeploymentSpec.model_validate(plan.spec)
    classes = []
    for load in seen.loads:
        known = _class_of(spec, load.request_class)
        slo = next(traffic.slo for traffic in spec.traffic if traffic.name == known)
        measured = measured_summary(seen, load.request_class, slo)
        predicted = _predicted(plan, path, seen, load, known, group_id)
        classes.append(
            {
                "class": load.request_class,
                "measured": measured,
                "predicted": predicted,
                "difference": difference(predicted, measured),
                "limits": limits_in_words(spec, known),
            }
        )
    if not classes:
        raise InputError("says nothing of how its requests were sent", file=str(path), field="loads")
    endpoint = seen.endpoint.model_dump(mode="json") if seen.endpoint is not None else None
    return {
        "url": seen.source,
        "endpoint": endpoint,
        "partial": seen.partial,
        "classes": classes,
        "notes": [*margin_notes(plan), *seen.notes],
    }


def _class_of(spec: DeploymentSpec, name: str) -> str:
    names = [traffic.name for traffic in spec.traffic]
    if name in names:
        return name
    if len(names) != 1:
        raise InputError(
            f"the plan has no class {name!r}", field="request_class", expected=f"{' or '.join(names)}, or one class"
        )
    return names[0]


def _predicted(
    plan: Plan, path: Path, seen: Measurements, load: Load, known: str, group_id: str | None
) -> dict[str, Any]:
    from capstan.commands.verify_traffic import alone, predicted_open
    from planner.estimate.observed import predicted_closed_loop, workload_of_rows
    from planner.plan_simulation.simulate import replica_model
    from planner.simulate import slos_of
    from specs.deployment import DeploymentSpec

    if group_id is not None:
        plan = alone(plan, group_id)
    spec = DeploymentSpec.model_validate(plan.spec)
    own = seen.model_copy(
        update={
            "requests": tuple(row for row in seen.requests if row.request_class == load.request_class),
            "loads": (load,),
        }
    )
    try:
        workload: Workload = workload_of_rows(own, tuple(traffic.name for traffic in spec.traffic), known)
    except InputError as error:
        error.file = str(path)
        raise
    if load.kind == "open":
        return predicted_open(plan, path.parent, workload)[known]
    if len(plan.groups) != 1:
        raise InputError(
            f"a closed loop over {len(plan.groups)} groups is not predicted", field="--group", expected="one group"
        )
    group = plan.groups[0]
    model = replica_model(plan, group)
    return predicted_closed_loop(
        model, group.replicas, load, workload.prompt_tokens, workload.output_tokens, slos_of(spec).get(known)
    )
