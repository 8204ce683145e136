"""Search over pipelines of aligned stages: plans for several flows, machines named, then annealing."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from planner.optimize.layer_placement.anneal import Flows, State, anneal
from planner.optimize.layer_placement.bound import ThroughputBound
from planner.optimize.layer_placement.flow import Group, pipeline_flow
from planner.optimize.layer_placement.instance import LayerInstance
from planner.optimize.layer_placement.stages import SLOWEST_S, Stage, plan_stages, stage_speed

CLOSE_ENOUGH = 1e-6
SHARES = (  # of the aligned flow, wanted of stages
    *(1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2, 0.05, 1e-6),
)
RAISE = 1.12  # the wanted flow beside the best one
SHORT, LONG = 5_000, 20_000  # steps of one run of annealing: short ones suit some networks, long ones others
NAMINGS = 6  # of the machines of each plan, to begin with
WIDTH = 4  # best starts that take turns


@dataclass
class Effort:
    """What a search may still do: so many steps, and none after `deadline` (of `time.monotonic`).

    Answers depend on the steps alone as long as the deadline, which is there for slow machines, is not met.
    """

    steps: int
    deadline: float

    @property
    def spent(self) -> bool:
        return self.steps <= 0 or self.late

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


def search_stages(
    instance: LayerInstance, aligned: float, proof: ThroughputBound, effort: Effort, seed: int, run: int = SHORT
) -> State | None:
    """The best pipeline met in chains of annealing; it ends early where `aligned` tokens/s are reached.

    Chains, of runs of `run` steps, start from stages planned for ever other flows; those that promise most come first.
    At least one plan is started from, however little the effort. None where there is no plan at all.
    """
    draw, flows = random.Random(seed), Flows(instance)
    starts: list[tuple[float, State]] = []
    for share in SHARES:
        stages = plan_stages(instance, share * aligned * (1 - 1e-9), proof.worth, SLOWEST_S)
        for _ in range(NAMINGS if stages else 0):
            state = name_machines(instance, stages or (), flows, draw)
            starts.append((pipeline_flow(instance, state.stages), state))
        if starts and (effort.late or starts[-1][0] >= aligned * (1 - CLOSE_ENOUGH)):
            break
    if not starts:
        return None
    best, found = max(starts, key=lambda entry: entry[0])
    turn = 0
    while not effort.spent and best < aligned * (1 - CLOSE_ENOUGH):
        starts.sort(key=lambda entry: -entry[0])
        start = starts[min(turn % WIDTH, len(starts) - 1)][1]
        value, state = _chain(instance, start, aligned, run, effort, flows, draw)
        starts.append((value, state))
        turn += 1
        if value > best:
            best, found = value, state
    return found


def _chain(
    instance: LayerInstance,
    state: State,
    aligned: float,
    steps: int,
    effort: Effort,
    flows: Flows,
    draw: random.Random,
) -> tuple[float, State]:
    """Annealing that aims a little higher than what was reached, for as long as it gets there."""
    value = pipeline_flow(instance, state.stages)
    while value < aligned * (1 - CLOSE_ENOUGH) and not effort.spent:
        aim = min(aligned, max(value, min(flows.all(state.stages))) * RAISE or aligned * SHARES[-1])
        effort.steps -= steps
        reached, state = anneal(instance, state, value, aim, steps, effort.deadline, draw, flows)
        if reached <= value:
            break
        value = reached
    return value, state


def name_machines(instance: LayerInstance, stages: tuple[Stage, ...], flows: Flows, draw: random.Random) -> State:
    """Stages put in order one by one, each with the machines that the stage before it reaches best; ties are drawn."""
    left = {kind: {i for i, name in enumerate(instance.types) if name == kind} for kind in instance.counts}
    waiting = list(stages)
    groups: list[Group] = []
    while waiting:
        before = groups[-1] if groups else None
        options: list[tuple[float, float, Stage, Group]] = []
        for stage in dict.fromkeys(waiting):
            group = stage.layers, _best_reached(instance, stage, before, left, draw)
            through = min(flows.between(before, group), _onward(instance, group, left), stage_speed(instance, stage))
            options.append((through, draw.random(), stage, group))
        _, _, stage, group = max(options, key=lambda option: option[:2])
        waiting.remove(stage)
        groups.append(group)
        for machines in left.values():
            machines -= group[1]
    return State(groups, frozenset(machine for machines in left.values() for machine in machines))


def _best_reached(
    instance: LayerInstance, stage: Stage, before: Group | None, left: dict[str, set[int]], draw: random.Random
) -> frozenset[int]:
    """Of each type, the free machines with the most capacity from the stage before."""

    def reached(machine: int) -> float:
        if before is None:
            return instance.sources.get(machine, 0.0)
        return sum(min(instance.links.get((i, machine), 0.0), instance.speed(i, before[0])) for i in before[1])

    chosen: list[int] = []
    for kind, count in stage.machines:
        order = sorted(left[kind], key=lambda machine: (-reached(machine), draw.random()))
        chosen += order[:count]
    return frozenset(chosen)


def _onward(instance: LayerInstance, group: Group, left: dict[str, set[int]]) -> float:
    """Capacity from a group to machines that are still free; to the sink where none is."""
    free = set().union(*left.values()) - group[1]
    if not free:
        return sum(instance.sinks.get(machine, 0.0) for machine in group[1])
    return sum(instance.links.get((i, j), 0.0) for i in group[1] for j in free)
