"""Placements whose ranges need not align, links aside: the exact programme over layer boundaries, for small instances.

Sets
    boundaries 0..L between layers; arcs (g, s, k): machines of type g that hold the k layers from boundary s
Variables
    z[g,s,k] integer >= 0   how many machines of type g do
    f[g,s,k] >= 0           tokens/s through them, as a share of a bound
Laws
    machines are not overloaded: f <= tokens_per_s[g][k] z;  a type's machines are not more than there are
    flow is kept: what enters a boundary between the ends leaves it
Objective
    maximise the flow that leaves boundary 0
"""

from __future__ import annotations

from typing import Any

import pulp

from planner.optimize.guard import certified
from planner.optimize.layer_placement.instance import LayerInstance, Placement
from specs.errors import CapstanError

MOST_COLUMNS = 3_000
TINY, TINY_S = 600, 10.0  # columns of a programme that takes tenths of a second and is not denied them
MOST_NODES = 200  # of the tree; up to a twentieth of a second each

Arc = tuple[str, int, int]  # type, first layer, layers


def arcs(instance: LayerInstance) -> list[Arc]:
    """Every range of layers that a machine of some type can hold."""
    return [
        (kind, first, layers)
        for kind in instance.counts
        for layers, speed in instance.tokens_per_s[kind].items()
        if speed > 0
        for first in range(instance.layers - layers + 1)
    ]


def seconds_for(columns: int, time_limit_s: float) -> float | None:
    """Seconds for a programme of that size; None where it is too large, or no time is left for more than a tiny one."""
    if columns <= TINY:
        return max(time_limit_s, TINY_S)
    return time_limit_s if columns <= MOST_COLUMNS and time_limit_s > 0 else None


def place_on_boundaries(instance: LayerInstance, bound: float, time_limit_s: float) -> tuple[Placement, float] | None:
    """(best placement found in time, bound); None where none was found, or the programme is too large."""
    choices = arcs(instance)
    seconds = seconds_for(len(choices), time_limit_s)
    if seconds is None:
        return None
    problem = pulp.LpProblem("boundaries", pulp.LpMinimize)
    held = {
        arc: pulp.LpVariable(f"z_{index}", lowBound=0, upBound=instance.counts[arc[0]], cat=pulp.LpInteger)
        for index, arc in enumerate(choices)
    }
    flow = {arc: pulp.LpVariable(f"f_{index}", lowBound=0, upBound=1) for index, arc in enumerate(choices)}
    problem += -pulp.lpSum(flow[arc] for arc in choices if arc[1] == 0)
    for arc in choices:
        problem += flow[arc] <= instance.tokens_per_s[arc[0]][arc[2]] / bound * held[arc]
    for kind, count in instance.counts.items():
        problem += pulp.lpSum(held[arc] for arc in choices if arc[0] == kind) <= count
    for row in _flow_is_kept(instance, flow):
        problem += row
    try:
        found = certified(problem, time_limit_s=seconds, most_nodes=MOST_NODES)
    except CapstanError:  # nothing found in time
        return None
    left = {kind: [i for i, name in enumerate(instance.types) if name == kind] for kind in instance.counts}
    placement: Placement = {}
    for arc, variable in held.items():
        for _ in range(int(found.values[variable.name])):
            placement[left[arc[0]].pop(0)] = (arc[1], arc[1] + arc[2])
    return placement, -found.bound * bound


def _flow_is_kept(instance: LayerInstance, flow: dict[Arc, Any]) -> list[Any]:
    """Of each boundary between the ends: what comes in goes out."""
    return [
        pulp.lpSum(f for arc, f in flow.items() if arc[1] + arc[2] == boundary)
        == pulp.lpSum(f for arc, f in flow.items() if arc[1] == boundary)
        for boundary in range(1, instance.layers)
    ]
