"""Groups of a plan under the names that they are stated by: `group-0` is only what the planner calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from planner.optimize.decision import group_id
from planner.stated.replicas import StatedReplicas
from specs.plan import Plan

_GROUP = re.compile(r"\bgroup-\d+\b")
Names = Mapping[str, str]  # by what the planner calls a group


def names_of(replicas: tuple[StatedReplicas, ...]) -> dict[str, str]:
    """Stated names; groups that are not stated keep theirs."""
    return {group_id(index): item.group.name for index, item in enumerate(replicas)}


def versions_of(replicas: tuple[StatedReplicas, ...]) -> dict[str, str]:
    """Releases of the engine that are stated, by what the planner calls a group."""
    return {group_id(index): item.group.engine_version or "" for index, item in enumerate(replicas)}


def with_names(text: str, names: Names) -> str:
    """A sentence with every group called as it is stated."""
    return _GROUP.sub(lambda found: names.get(found[0], found[0]), text)


def renamed(plan: Plan, names: Names, versions: Mapping[str, str]) -> Plan:
    """The plan with its groups called so, each at its release of the engine."""

    def name(group: str) -> str:
        return names.get(group, group)

    groups = tuple(
        group.model_copy(
            update={
                "id": name(group.id),
                "hands_over_to": None if group.hands_over_to is None else name(group.hands_over_to),
                "engine_version": versions.get(group.id, ""),
            }
        )
        for group in plan.groups
    )
    loads = tuple(load.model_copy(update={"group": name(load.group)}) for load in plan.predictions.groups)
    notes = tuple(with_names(note, names) for note in plan.predictions.notes)
    return plan.model_copy(
        update={
            "groups": groups,
            "routes": tuple(route.model_copy(update={"group": name(route.group)}) for route in plan.routes),
            "predictions": plan.predictions.model_copy(update={"groups": loads, "notes": notes}),
            "binding": tuple(
                item.model_copy(update={"statement": with_names(item.statement, names)}) for item in plan.binding
            ),
        }
    )
