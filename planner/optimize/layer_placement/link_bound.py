"""An upper bound that knows the links: a linear programme over classes of like machines, layers taken together.

Sets
    c, d in classes: machines of one type whose links to all others, to the source and to the sink are the same
    modes m = (layers k, first, last) of a machine; first: fed by the source (it holds layer 0); last: feeds the sink
Parameters
    N[c]          machines of a class
    most[c,m]     tokens/s through one machine: its speed, its links on either side, and the bound T known so far
    links[c,d]    capacities of all links from machines of c to machines of d together, each at most T
    pairs(T)      least machines for each token/s that is handed over a boundary, see `machines_for_handing_over`
Variables
    t             tokens/s through all layers
    g[c,m] >= 0   tokens/s through the machines of c in mode m;   F[c,d] >= 0  over links;   idle[c] >= 0 machines
Laws
    machines are not overloaded:            sum_m g[c,m] / most[c,m] + idle[c] = N[c]
    links are not overloaded:               F[c,d] <= links[c,d]
    what a class takes in leaves it:        sum_d F[d,c] = sum over not first g[c,m],  sum_d F[c,d] = ... not last
    every layer is passed by every token:   sum k g[c,m] >= L t,  sum over first g = t = sum over last g
    handing over takes machines:            pairs(T) sum F <= machines that end inside + machines that begin inside
Objective
    maximise t

A placement that carries at most T gives a solution, so no placement carries more than min(T, t), which is the next T.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pulp

from planner.optimize.layer_placement.instance import LayerInstance
from planner.optimize.solve import minimise
from specs.errors import CapstanError

ROUNDS = 25
SECONDS = 30.0  # for one programme, which takes hundredths
WORTH_ANOTHER = 0.998  # of the bound before: above it rounds end
SAFE = 1 + 1e-6  # the solver's tolerance

Mode = tuple[int, bool, bool]  # layers, first, last


@dataclass(frozen=True)
class MachineClass:
    """`machines` are alike; capacities are those of one of them: from the source, to the sink, and over all links."""

    machines: tuple[int, ...]
    speeds: dict[int, float]
    source: float
    sink: float
    entering: float
    leaving: float


def link_bound(instance: LayerInstance, bound: float, deadline: float) -> float:
    """A bound of at most `bound`; `deadline` (of `time.monotonic`) only ends the rounds early."""
    classes = machine_classes(instance)
    for _ in range(ROUNDS):
        if bound <= 0 or time.monotonic() > deadline:
            break
        lower = _most_flow(instance, classes, bound)
        if lower >= bound * WORTH_ANOTHER:
            return min(bound, lower)
        bound = lower
    return bound


def machine_classes(instance: LayerInstance) -> list[MachineClass]:
    """Machines that can change places with another one without any link changing stand in one class."""
    groups: dict[int, list[int]] = {}
    for machine, first in enumerate(instance.alike):
        groups.setdefault(first, []).append(machine)
    entering: dict[int, float] = defaultdict(float)
    leaving: dict[int, float] = defaultdict(float)
    for (tail, head), capacity in instance.links.items():
        leaving[tail] += capacity
        entering[head] += capacity
    return [
        MachineClass(
            machines=tuple(group),
            speeds={k: speed for k, speed in instance.tokens_per_s[instance.types[group[0]]].items() if speed > 0},
            source=instance.sources.get(group[0], 0.0),
            sink=instance.sinks.get(group[0], 0.0),
            entering=entering[group[0]],
            leaving=leaving[group[0]],
        )
        for group in groups.values()
    ]


def machines_for_handing_over(capacity: float, most: float) -> float:
    """Least (a + b) / flow over all flows up to `most` that a machines hand to b, each pair by a link of `capacity`."""
    least = math.inf
    for machines in range(2, 2 * math.isqrt(max(1, math.ceil(most / capacity))) + 4):
        flow = min(most, (machines // 2) * (machines - machines // 2) * capacity)
        least = min(least, machines / flow)
    return least


def modes(instance: LayerInstance, kind: MachineClass, most: float) -> dict[Mode, float]:
    """Tokens/s of one machine in every mode that can carry something."""
    found: dict[Mode, float] = {}
    for layers, speed in kind.speeds.items():
        for first in (False, True):
            for last in (False, True):
                if (first and last) != (layers == instance.layers):
                    continue
                before = kind.source if first else kind.entering
                after = kind.sink if last else kind.leaving
                carried = min(speed, most, before, after)
                if carried > 0:
                    found[layers, first, last] = carried
    return found


@dataclass(frozen=True)
class _Variables:
    """Flows as shares of the bound known so far; lists and keys by class."""

    total: Any
    through: list[dict[Mode, Any]]
    machines: list[dict[Mode, Any]]  # that the flow through a mode takes
    idle: list[Any]
    moved: dict[tuple[int, int], Any]


def _most_flow(instance: LayerInstance, classes: list[MachineClass], bound: float) -> float:
    """The programme's optimum; `bound` where no solver answers."""
    variables = _variables(instance, classes, bound)
    problem = pulp.LpProblem("links", pulp.LpMinimize)
    problem += -variables.total
    for row in (
        *machines_are_not_overloaded(classes, variables),
        *what_enters_a_class_leaves_it(variables),
        *layers_are_passed(instance.layers, variables),
        *handing_over_takes_machines(max(instance.links.values(), default=0.0) / bound, variables),
    ):
        problem += row
    try:
        _, status, _ = minimise(problem, SECONDS)
    except CapstanError:
        return bound
    return float(variables.total.varValue or 0.0) * SAFE * bound if status == "optimal" else bound


def _variables(instance: LayerInstance, classes: list[MachineClass], bound: float) -> _Variables:
    carried = [modes(instance, kind, bound) for kind in classes]
    through = [
        {mode: pulp.LpVariable(f"g_{index}_{n}", lowBound=0) for n, mode in enumerate(by_mode)}
        for index, by_mode in enumerate(carried)
    ]
    of = {machine: index for index, kind in enumerate(classes) for machine in kind.machines}
    together: dict[tuple[int, int], float] = defaultdict(float)
    for (tail, head), capacity in instance.links.items():
        together[of[tail], of[head]] += min(1.0, capacity / bound)
    return _Variables(
        total=pulp.LpVariable("t", lowBound=0, upBound=1),
        through=through,
        machines=[
            {mode: bound / by_mode[mode] * flow for mode, flow in flows.items()}
            for by_mode, flows in zip(carried, through, strict=True)
        ],
        idle=[pulp.LpVariable(f"idle_{index}", lowBound=0) for index in range(len(classes))],
        moved={
            pair: pulp.LpVariable(f"f_{pair[0]}_{pair[1]}", lowBound=0, upBound=capacity)
            for pair, capacity in together.items()
            if capacity > 0
        },
    )


def machines_are_not_overloaded(classes: list[MachineClass], variables: _Variables) -> list[Any]:
    """The machines that the flow takes, with those left idle, are as many as there are."""
    return [
        pulp.lpSum(used.values()) + idle == len(kind.machines)
        for kind, used, idle in zip(classes, variables.machines, variables.idle, strict=True)
    ]


def what_enters_a_class_leaves_it(variables: _Variables) -> list[Any]:
    """Links bring a class what its machines pass on, but for what the source brings; likewise what they take away."""
    rows = []
    for index, flows in enumerate(variables.through):
        entering = pulp.lpSum(flow for (_, head), flow in variables.moved.items() if head == index)
        leaving = pulp.lpSum(flow for (tail, _), flow in variables.moved.items() if tail == index)
        rows.append(entering == pulp.lpSum(flow for (_, first, _), flow in flows.items() if not first))
        rows.append(leaving == pulp.lpSum(flow for (_, _, last), flow in flows.items() if not last))
    return rows


def layers_are_passed(layers: int, variables: _Variables) -> list[Any]:
    """Every token passes every layer; it comes from the source and goes to the sink."""
    every = [(mode, flow) for flows in variables.through for mode, flow in flows.items()]
    return [
        pulp.lpSum(held * flow for (held, _, _), flow in every) >= layers * variables.total,
        pulp.lpSum(flow for (_, first, _), flow in every if first) == variables.total,
        pulp.lpSum(flow for (_, _, last), flow in every if last) == variables.total,
    ]


def handing_over_takes_machines(fastest: float, variables: _Variables) -> list[Any]:
    """Over links no faster than the fastest, what is handed over takes a number of machines on both sides."""
    if fastest <= 0:
        return []
    ends = [((not first) + (not last)) * used for by in variables.machines for (_, first, last), used in by.items()]
    handed = pulp.lpSum(variables.moved.values())
    return [machines_for_handing_over(fastest, 1.0) * handed <= pulp.lpSum(ends) + 2 * pulp.lpSum(variables.idle)]
