"""The best placement found in the time allowed, with the bound that proves how far from the optimum it can be."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from planner.optimize.layer_placement.anneal import Flows, State, anneal
from planner.optimize.layer_placement.bound import ThroughputBound, throughput_bound
from planner.optimize.layer_placement.boundaries import place_on_boundaries
from planner.optimize.layer_placement.flow import Group, pipeline_flow
from planner.optimize.layer_placement.instance import LayerInstance, Placement, max_flow
from planner.optimize.layer_placement.named import place_named
from planner.optimize.layer_placement.stages import Stage, best_stages, plan_stages, stage_speed
from specs.errors import NoPlanError

CLOSE_ENOUGH = 1e-6
SHARES = (  # of the aligned flow, wanted of stages
    *(1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2, 0.05, 1e-6),
)
RAISE = 1.12  # the wanted flow beside the best one
STEPS = 5_000
NAMINGS = 6  # of the machines of each plan, to begin with
WIDTH = 4  # best starts that take turns
STAGES_SHARE, PROGRAMME_SHARE = 0.3, 0.6  # of the time: by when pipelines, and the exact programme, must be done
PROVEN = 1e-4  # a gap below which nothing more is tried


@dataclass(frozen=True)
class LayerPlacement:
    """`tokens_per_s` is the maximum flow of `placement`, computed by networkx; none carries more than `bound`."""

    placement: Placement
    tokens_per_s: float
    bound: float

    @property
    def proven(self) -> bool:
        return self.tokens_per_s >= self.bound * (1 - PROVEN)


def place_layers(instance: LayerInstance, *, time_limit_s: float = 60.0, seed: int = 0) -> LayerPlacement:
    """Aligned stages first; the exact programme where it is small and a gap is left; annealing where links bind.

    Raises `NoPlanError` where no placement with a flow was found.
    """
    begun = time.monotonic()
    proof = throughput_bound(instance)
    aligned, _ = best_stages(instance, proof.worth, proof.tokens_per_s, begun + STAGES_SHARE * time_limit_s)
    best = LayerPlacement({}, 0.0, proof.tokens_per_s)
    if aligned >= best.bound * (1 - PROVEN):
        best = _with_state(instance, best, _search(instance, aligned, proof, begun, seed))
    for exact in (place_on_boundaries, place_named):
        left_s = begun + PROGRAMME_SHARE * time_limit_s - time.monotonic()
        if left_s > 0 and not best.proven:
            answer = exact(instance, best.bound, left_s)
            if answer is not None:
                best = _better(instance, replace(best, bound=min(best.bound, answer[1])), answer[0])
    if not best.proven:
        state = _search(instance, aligned or best.bound, proof, begun + time_limit_s, seed)
        best = _with_state(instance, best, state)
    if best.tokens_per_s <= 0:
        raise NoPlanError("no placement was found that carries anything; this does not prove that there is none")
    return best


def _with_state(instance: LayerInstance, best: LayerPlacement, state: State | None) -> LayerPlacement:
    return best if state is None else _better(instance, best, state.placement())


def _better(instance: LayerInstance, best: LayerPlacement, placement: Placement) -> LayerPlacement:
    """The placement in the place of the best one, if it carries more."""
    flow = max_flow(instance, placement)
    if flow <= best.tokens_per_s:
        return best
    return LayerPlacement(placement, flow, max(best.bound, flow))


def name_machines(instance: LayerInstance, stages: tuple[Stage, ...], flows: Flows, draw: random.Random) -> State:
    """Stages put in order one by one, each with the machines that the stage before it reaches best; ties are drawn."""
    left = {kind: {i for i, name in enumerate(instance.types) if name == kind} for kind in instance.counts}
    waiting = list(stages)
    groups: list[Group] = []
    while waiting:
        before = groups[-1] if groups else None
        options: list[tuple[float, float, Stage, Group]] = []
        for stage in set(waiting):
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


def _search(
    instance: LayerInstance, aligned: float, proof: ThroughputBound, deadline: float, seed: int
) -> State | None:
    """Chains of annealing from stages planned for ever other flows; those that promise most come first.

    At least one plan is started from, however short the time.
    """
    draw, flows = random.Random(seed), Flows(instance)
    starts: list[tuple[float, State]] = []
    for share in SHARES:
        stages = plan_stages(instance, share * aligned * (1 - 1e-9), proof.worth, 2.0)
        for _ in range(NAMINGS if stages else 0):
            state = name_machines(instance, stages or (), flows, draw)
            starts.append((pipeline_flow(instance, state.stages), state))
        if starts and (time.monotonic() > deadline or starts[-1][0] >= aligned * (1 - CLOSE_ENOUGH)):
            break
    if not starts:
        return None
    best, found = max(starts, key=lambda entry: entry[0])
    turn = 0
    while time.monotonic() < deadline and best < aligned * (1 - CLOSE_ENOUGH):
        starts.sort(key=lambda entry: -entry[0])
        value, state = _chain(instance, starts[min(turn % WIDTH, len(starts) - 1)][1], aligned, deadline, flows, draw)
        starts.append((value, state))
        turn += 1
        if value > best:
            best, found = value, state
    return found


def _chain(
    instance: LayerInstance, state: State, aligned: float, deadline: float, flows: Flows, draw: random.Random
) -> tuple[float, State]:
    """Annealing that aims a little higher than what was reached, for as long as it gets there."""
    value = pipeline_flow(instance, state.stages)
    while value < aligned * (1 - CLOSE_ENOUGH) and time.monotonic() < deadline:
        aim = min(aligned, max(value, min(flows.all(state.stages))) * RAISE or aligned * SHARES[-1])
        reached, state = anneal(instance, state, value, aim, STEPS, deadline, draw, flows)
        if reached <= value:
            break
        value = reached
    return value, state
