"""Which groups a request class goes to, and which group hands over to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.simulate.links import Link
from planner.simulate.model import FleetGroup, Workload
from specs.plan import Route
from specs.service import ClassSplit


def class_splits(groups: Sequence[FleetGroup], routes: Sequence[Route], workload: Workload) -> list[ClassSplit]:
    """How each class is split; every class needs a route, and every route a group that takes arrivals."""
    if not groups:
        raise ValueError("there are no replica groups to serve anything")
    names = [group.id for group in groups]
    unknown = [route.group for route in routes if route.group not in names]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"routes to {unknown} do not fit the groups {names}")
    splits = []
    for name in workload.classes:
        own = [route for route in routes if route.request_class == name]
        if not own:
            raise ValueError(f"no route for request class {name!r}")
        decode = [route.group for route in own if groups[names.index(route.group)].role == "decode"]
        if decode:
            raise ValueError(
                f"request class {name!r} is routed to {decode[0]!r}, a decode group: it takes handoffs only"
            )
        splits.append(ClassSplit([names.index(route.group) for route in own], [route.share for route in own]))
    return splits


def handoff_targets(groups: Sequence[FleetGroup], links: Mapping[str, Link]) -> list[int | None]:
    """By group: the group it hands over to. Raises `ValueError` where that is none, or the link is not there."""
    names = [group.id for group in groups]
    targets: list[int | None] = []
    for group in groups:
        handoff = group.handoff
        if handoff is None:
            targets.append(None)
            continue
        if handoff.group not in names or groups[names.index(handoff.group)].role != "decode":
            raise ValueError(f"group {group.id!r} hands over to {handoff.group!r}, which is not a decode group")
        if handoff.link not in links:
            raise ValueError(f"group {group.id!r} hands over by link {handoff.link!r}; there are {sorted(links)}")
        targets.append(names.index(handoff.group))
    return targets
