"""Fleets whose models share nothing, simulated model by model: the same answer as all at once, for far less work.

A simulation looks at every replica at every arrival. Groups that no class, and no hand-over, has in common never meet,
so each such part runs by itself, and the results are put together in the order of the workload. Only what is drawn by
the number of a request (accepted drafts) is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from planner.simulate.fleet import simulate_fleet
from planner.simulate.model import FleetGroup, IntArray, Workload
from planner.simulate.result import FleetResult, GroupLoad
from planner.simulate.together import together
from specs.deployment import SLO
from specs.plan import Route, RouterName

LEAST_REPLICAS = 64  # from which on it is worth it
_BY_GROUP = ("group_index", "decode_group_index")
_BY_REQUEST = {
    "ttft_s": np.nan,
    "tpot_s": np.nan,
    "e2e_s": np.nan,
    "replica_index": -1,
    "preemptions": 0,
    "rejected": False,
    "arrival_s": np.nan,
    "start_s": np.nan,
    "cached_tokens": 0,
    "refusal": 0,
    "decode_replica_index": -1,
}


def simulate_parts(
    groups: Sequence[FleetGroup],
    routes: Sequence[Route],
    workload: Workload,
    *,
    router: RouterName = "least_outstanding",
    refute: Mapping[str, SLO] | None = None,
    progress: Callable[[float], None] | None = None,
) -> FleetResult:
    """As `simulate_fleet` of groups that hand nothing over; a limit that is broken is the last part of the result.

    `progress` is told of each part.
    """
    parts = _parts(groups, routes)
    everywhere = sum(len(members) for members, _ in parts) == len(groups)
    if len(parts) == 1 or not everywhere or sum(group.replicas for group in groups) < LEAST_REPLICAS:
        return simulate_fleet(groups, routes, workload, router=router, refute=refute, progress=progress)

    def run(members: list[int], classes: set[str]) -> FleetResult:
        own = only(workload, tuple(name for name in workload.classes if name in classes))
        slos = None if refute is None else {name: slo for name, slo in refute.items() if name in classes}
        own_routes = [route for route in routes if route.request_class in classes]
        groups_of = [groups[i] for i in members]
        return simulate_fleet(groups_of, own_routes, own, router=router, refute=slos, progress=progress)

    results = []
    for result, (members, classes) in zip(together(partial(run, *part) for part in parts), parts, strict=True):
        results.append((result, members, places_in(workload, classes)))
        if result.refuted_early is not None:
            break
    return joined(len(groups), workload, results)


def only(workload: Workload, classes: tuple[str, ...]) -> Workload:
    """The requests of `classes`, with no other class in it."""
    if classes == workload.classes:
        return workload
    place = np.full(len(workload.classes), -1)
    place[[workload.classes.index(name) for name in classes]] = np.arange(len(classes))
    part = workload.at(places_in(workload, classes))
    return replace(part, classes=classes, class_index=place[part.class_index])


def places_in(workload: Workload, classes: Iterable[str]) -> IntArray:
    """Where the requests of these classes stand in the workload, ascending."""
    chosen = [workload.places[workload.classes.index(name)] for name in classes]
    return np.sort(np.concatenate(chosen)) if len(chosen) > 1 else chosen[0]


def _parts(groups: Sequence[FleetGroup], routes: Sequence[Route]) -> list[tuple[list[int], set[str]]]:
    """Positions of groups that share classes, directly or through others, and those classes."""
    places = {group.id: index for index, group in enumerate(groups)}
    parts: list[tuple[set[int], set[str]]] = []
    for name in dict.fromkeys(route.request_class for route in routes):
        own = {places[route.group] for route in routes if route.request_class == name}
        shared = [part for part in parts if part[0] & own]
        parts = [part for part in parts if not part[0] & own]
        parts.append((own.union(*(part[0] for part in shared)), {name}.union(*(part[1] for part in shared))))
    return [(sorted(members), classes) for members, classes in parts]


def joined(
    group_count: int, workload: Workload, results: Sequence[tuple[FleetResult, list[int], IntArray]]
) -> FleetResult:
    """One result of the parts: each with the places of its groups and of its requests in the whole.

    Requests of parts that were not run are not routed.
    """
    arrays: dict[str, Any] = {name: np.full(len(workload), -1) for name in _BY_GROUP}
    first = results[0][0]
    for name, nothing in _BY_REQUEST.items():
        like = getattr(first, name)
        arrays[name] = None if like is None else np.full(len(workload), nothing, dtype=like.dtype)
    loads: dict[int, GroupLoad] = {}
    for result, members, place in results:
        for name in _BY_REQUEST:
            if arrays[name] is not None:
                arrays[name][place] = getattr(result, name)
        for name in _BY_GROUP:
            local = getattr(result, name)
            if local is not None:
                arrays[name][place] = np.where(local >= 0, np.array(members)[local], -1)
        loads.update(zip(members, result.groups, strict=True))
    if first.decode_group_index is None:
        arrays["decode_group_index"] = None
    runs = [result for result, _, _ in results]
    return replace(
        first,
        **arrays,
        groups=tuple(loads[index] for index in range(group_count) if index in loads),
        horizon_s=workload.horizon_s,
        end_s=max(run.end_s for run in runs),
        events=sum(run.events for run in runs),
        event_bound_hit=any(run.event_bound_hit for run in runs),
        refuted_early=next((run.refuted_early for run in runs if run.refuted_early is not None), None),
        waiting=(sum(run.waiting[0] for run in runs), sum(run.waiting[1] for run in runs)),
    )
