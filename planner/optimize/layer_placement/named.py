"""Placements of named machines with their links: the exact programme, for small instances whose links bind.

Sets
    machines i; ranges (s, k): the k layers from boundary s; boundaries b in 0..L; links (i, j)
Variables
    z[i,s,k] in {0,1}      machine i holds that range
    g[i,s,k] >= 0          flow through machine i while it holds that range
    f[i,j,b] >= 0          flow from i to j at boundary b; i is the source at b = 0, j the sink at b = L
Laws
    a machine holds at most one range: sum_(s,k) z[i,s,k] <= 1
    it is not overloaded: g[i,s,k] <= tokens_per_s z[i,s,k];  nor is a link: sum_b f[i,j,b] <= links[i,j]
    what enters a machine at a boundary goes through ranges that begin there; what leaves, through ranges that end there
Objective
    maximise the flow out of the source

Flows are shares of a bound on the flow.
"""

from __future__ import annotations

from typing import Any

import pulp

from planner.optimize.guard import certified
from planner.optimize.layer_placement.boundaries import seconds_for
from planner.optimize.layer_placement.instance import LayerInstance, Placement
from specs.errors import CapstanError

MOST_NODES = 200  # of the tree; up to a twentieth of a second each

Range = tuple[int, int, int]  # machine, first layer, layers


def ranges(instance: LayerInstance) -> list[Range]:
    """Every range that a machine can hold."""
    return [
        (machine, first, layers)
        for machine, kind in enumerate(instance.types)
        for layers, speed in instance.tokens_per_s[kind].items()
        if speed > 0
        for first in range(instance.layers - layers + 1)
    ]


def place_named(instance: LayerInstance, bound: float, time_limit_s: float) -> tuple[Placement, float] | None:
    """(best placement found in time, bound); None where none was found, or the programme is too large."""
    choices = ranges(instance)
    seconds = seconds_for(2 * len(choices) + len(instance.links) * (instance.layers - 1), time_limit_s)
    if seconds is None:
        return None
    problem = pulp.LpProblem("named", pulp.LpMinimize)
    held = {choice: pulp.LpVariable(f"z_{n}", cat=pulp.LpBinary) for n, choice in enumerate(choices)}
    through = {choice: pulp.LpVariable(f"g_{n}", lowBound=0, upBound=1) for n, choice in enumerate(choices)}
    moved = {
        (i, j, b): pulp.LpVariable(f"f_{i}_{j}_{b}", lowBound=0, upBound=capacity / bound)
        for (i, j), capacity in instance.links.items()
        for b in range(1, instance.layers)
    }
    problem += -pulp.lpSum(flow for (_, first, _), flow in through.items() if first == 0)
    for row in (
        *machines_hold_one_range(instance, held),
        *machines_are_not_overloaded(instance, bound, held, through),
        *links_are_not_overloaded(instance, bound, through, moved),
        *flow_is_kept(instance, through, moved),
    ):
        problem += row
    try:
        found = certified(problem, time_limit_s=seconds, most_nodes=MOST_NODES)
    except CapstanError:  # nothing found in time
        return None
    taken = [choice for choice, variable in held.items() if found.values[variable.name] == 1]
    return {machine: (first, first + layers) for machine, first, layers in taken}, -found.bound * bound


def machines_hold_one_range(instance: LayerInstance, held: dict[Range, Any]) -> list[Any]:
    """Each machine holds one range of layers, or none."""
    return [
        pulp.lpSum(z for (machine, _, _), z in held.items() if machine == i) <= 1 for i in range(len(instance.types))
    ]


def machines_are_not_overloaded(
    instance: LayerInstance, bound: float, held: dict[Range, Any], through: dict[Range, Any]
) -> list[Any]:
    """A machine carries what its range allows, and nothing where it does not hold it."""
    return [through[choice] <= min(1.0, instance.speed(choice[0], choice[2]) / bound) * held[choice] for choice in held]


def links_are_not_overloaded(
    instance: LayerInstance, bound: float, through: dict[Range, Any], moved: dict[tuple[int, int, int], Any]
) -> list[Any]:
    """Links between machines, and those of the source and the sink, carry at most their capacity."""
    rows = [
        pulp.lpSum(moved[i, j, b] for b in range(1, instance.layers)) <= capacity / bound
        for (i, j), capacity in instance.links.items()
        if instance.layers > 1
    ]
    for i in range(len(instance.types)):
        entering = pulp.lpSum(flow for (machine, first, _), flow in through.items() if (machine, first) == (i, 0))
        leaving = pulp.lpSum(flow for (m, first, k), flow in through.items() if (m, first + k) == (i, instance.layers))
        rows += [entering <= min(1.0, instance.sources.get(i, 0.0) / bound)]
        rows += [leaving <= min(1.0, instance.sinks.get(i, 0.0) / bound)]
    return rows


def flow_is_kept(
    instance: LayerInstance, through: dict[Range, Any], moved: dict[tuple[int, int, int], Any]
) -> list[Any]:
    """At each boundary inside, what comes over a machine's links goes through it, and what went through it leaves."""
    rows = []
    for i in range(len(instance.types)):
        for b in range(1, instance.layers):
            begun = pulp.lpSum(flow for (machine, first, _), flow in through.items() if (machine, first) == (i, b))
            ended = pulp.lpSum(flow for (machine, s, k), flow in through.items() if (machine, s + k) == (i, b))
            rows.append(pulp.lpSum(f for (_, j, at), f in moved.items() if (j, at) == (i, b)) == begun)
            rows.append(pulp.lpSum(f for (j, _, at), f in moved.items() if (j, at) == (i, b)) == ended)
    return rows
