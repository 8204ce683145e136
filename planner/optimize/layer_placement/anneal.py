"""Named machines for the stages of a pipeline whose links bind: simulated annealing towards a wanted flow.

A state is a sequence of stages, each with its layers and its machines; spare machines hold nothing. Between two stages,
at the source and at the sink the flow is at most that of a small bipartite network. The energy is the sum of the shares
by which these flows fall short of the wanted one; a move changes few of them. Where none falls short by more than the
best flow so far, the whole maximum flow decides.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from planner.optimize.layer_placement.flow import Group, counted, pipeline_flow
from planner.optimize.layer_placement.instance import LayerInstance, Placement

MOST_REMEMBERED = 300_000  # flows, stages
FLOW_STEPS = 15  # that a maximum flow through all stages takes as long as
MOST_SIDE = 10  # machines of a stage, alike ones as one, up to which its cuts are enumerated
HOT, COLD = 0.03, 0.002  # of the wanted flow: from 0.15 on chains lose what they started with

Kinds = list[tuple[int, int]]  # the first of machines that are alike, and how many of them


@dataclass
class State:
    """Stages in order; `spare` machines hold no layers."""

    stages: list[Group]
    spare: frozenset[int]

    def placement(self) -> Placement:
        placed: Placement = {}
        first = 0
        for layers, machines in self.stages:
            placed |= dict.fromkeys(sorted(machines), (first, first + layers))
            first += layers
        return placed


@dataclass
class Flows:
    """Flows between neighbouring stages, and which stages can be, remembered."""

    instance: LayerInstance
    known: dict[tuple[Group | None, Group | None], float] = field(default_factory=dict)
    kinds: dict[tuple[Any, ...], float] = field(default_factory=dict)  # the same by machines that are alike
    fitting: dict[Group, bool] = field(default_factory=dict)

    def all(self, stages: list[Group]) -> list[float]:
        """At the source, between stages, and at the sink."""
        known, found = self.known, []
        for pair in pairwise([None, *stages, None]):
            value = known.get(pair)
            found.append(self.between(*pair) if value is None else value)
        return found

    def between(self, tail: Group | None, head: Group | None) -> float:
        """Maximum flow out of `tail` into `head`; None stands for the source and the sink."""
        key = tail, head
        if key not in self.known:
            if len(self.known) > MOST_REMEMBERED:
                self.known.clear()
            self.known[key] = self._between(tail, head)
        return self.known[key]

    def fit(self, stages: list[Group]) -> bool:
        """Whether every stage has machines, all of which can hold its layers."""
        fitting = self.fitting
        for stage in stages:
            fits = fitting.get(stage)
            if fits is None:
                layers, machines = stage
                fits = bool(machines) and all(self.instance.speed(machine, layers) > 0 for machine in machines)
                if len(fitting) > MOST_REMEMBERED:
                    fitting.clear()
                fitting[stage] = fits
            if not fits:
                return False
        return True

    def _between(self, tail: Group | None, head: Group | None) -> float:
        speed = self.instance.speed
        if tail is None or head is None:
            layers, machines = head or tail or (0, frozenset())
            ends = self.instance.sources if tail is None else self.instance.sinks
            return sum(min(speed(machine, layers), ends.get(machine, 0.0)) for machine in machines)
        sides = tuple(counted(self.instance, machines) for _, machines in (tail, head))
        key = tail[0], tuple(sides[0]), head[0], tuple(sides[1])
        if key not in self.kinds:
            self.kinds[key] = self._least_cut(tail[0], sides[0], head[0], sides[1])
        return self.kinds[key]

    def _least_cut(self, passed: int, tails: Kinds, held: int, heads: Kinds) -> float:
        """Maximum flow of machines that are alike taken together: tails hold `passed` layers, heads `held`."""
        speed, between = self.instance.speed, self.instance.between
        left = [(n * speed(i, passed), [n * m * between(i, j) for j, m in heads]) for i, n in tails]
        right = [(m * speed(j, held), [n * m * between(i, j) for i, n in tails]) for j, m in heads]
        few, many = (left, right) if len(left) <= len(right) else (right, left)
        return least_cut([cap for cap, _ in few], [cap for cap, _ in many], [row for _, row in few])


def least_cut(few: list[float], many: list[float], links: list[list[float]]) -> float:
    """Minimum cut of a bipartite network: for each subset of the few, each of the many is cut where that is cheaper."""
    if len(few) > MOST_SIDE:
        return min(sum(few), sum(many), sum(map(sum, links)))

    def least(index: int, cut: float, reached: list[float]) -> float:
        if index == len(few):
            return cut + sum(map(min, many, reached))
        more = [old + new for old, new in zip(reached, links[index], strict=True)]
        return min(least(index + 1, cut + few[index], reached), least(index + 1, cut, more))

    return least(0, 0.0, [0.0] * len(many))


def anneal(
    instance: LayerInstance,
    start: State,
    best: float,
    wanted: float,
    steps: int,
    deadline: float,
    draw: random.Random,
    flows: Flows,
) -> tuple[float, State]:
    """(tokens/s, state) of the best state met that carries more than `best`, else `best` and the start."""
    state, found = start, start
    energy = _energy(flows.all(state.stages), wanted)
    step = looked = 0
    while step < steps:
        step += 1
        if step >= looked:
            looked = step + 256
            if time.monotonic() > deadline:
                break
        moved = draw.choice(MOVES)(state, draw)
        if moved is None or not flows.fit(moved.stages):
            continue
        values = flows.all(moved.stages)
        after = _energy(values, wanted)
        heat = HOT * (COLD / HOT) ** (step / steps)
        if after > energy and draw.random() >= math.exp((energy - after) / heat):
            continue
        state, energy = moved, after
        if min(values) > best * (1 + 1e-9):
            flow = pipeline_flow(instance, state.stages)
            step += FLOW_STEPS
            if flow > best * (1 + 1e-9):
                best, found = flow, state
                if best >= wanted:
                    break
    return best, found


def _energy(values: list[float], wanted: float) -> float:
    return sum(1 - value / wanted for value in values if value < wanted)


def _swap_machines(state: State, draw: random.Random) -> State | None:
    """Two machines of different stages, or one and a spare, change places."""
    a, b = draw.randrange(len(state.stages)), draw.randrange(len(state.stages) + bool(state.spare))
    stages = list(state.stages)
    mine = draw.choice(sorted(stages[a][1]))
    if b == len(stages):
        other = draw.choice(sorted(state.spare))
        stages[a] = (stages[a][0], stages[a][1] - {mine} | {other})
        return State(stages, state.spare - {other} | {mine})
    if a == b:
        return None
    other = draw.choice(sorted(stages[b][1]))
    stages[a] = (stages[a][0], stages[a][1] - {mine} | {other})
    stages[b] = (stages[b][0], stages[b][1] - {other} | {mine})
    return State(stages, state.spare)


def _move_machine(state: State, draw: random.Random) -> State | None:
    """One machine goes to another stage; from a stage of one only if it is spare."""
    b = draw.randrange(len(state.stages))
    stages = list(state.stages)
    if state.spare and draw.random() < 0.5:
        machine = draw.choice(sorted(state.spare))
        stages[b] = (stages[b][0], stages[b][1] | {machine})
        return State(stages, state.spare - {machine})
    a = draw.randrange(len(stages))
    if a == b or len(stages[a][1]) == 1:
        return None
    machine = draw.choice(sorted(stages[a][1]))
    stages[a] = (stages[a][0], stages[a][1] - {machine})
    stages[b] = (stages[b][0], stages[b][1] | {machine})
    return State(stages, state.spare)


def _swap_stages(state: State, draw: random.Random) -> State | None:
    """Two stages change their order."""
    a, b = draw.randrange(len(state.stages)), draw.randrange(len(state.stages))
    stages = list(state.stages)
    stages[a], stages[b] = stages[b], stages[a]
    return State(stages, state.spare) if a != b else None


def _turn_stages(state: State, draw: random.Random) -> State | None:
    """A run of stages is turned round, or taken out and put in elsewhere."""
    a, b = sorted(draw.sample(range(len(state.stages) + 1), 2))
    run, rest = state.stages[a:b], state.stages[:a] + state.stages[b:]
    if draw.random() < 0.5:
        return State(state.stages[:a] + run[::-1] + state.stages[b:], state.spare)
    at = draw.randint(0, len(rest))
    return State(rest[:at] + run + rest[at:], state.spare)


def _shift_layer(state: State, draw: random.Random) -> State | None:
    """A stage gives a layer to another one."""
    a, b = draw.randrange(len(state.stages)), draw.randrange(len(state.stages))
    if a == b or state.stages[a][0] == 1:
        return None
    stages = list(state.stages)
    stages[a] = (stages[a][0] - 1, stages[a][1])
    stages[b] = (stages[b][0] + 1, stages[b][1])
    return State(stages, state.spare)


def _merge_stages(state: State, draw: random.Random) -> State | None:
    """Two neighbouring stages become one whose machines hold the layers of both."""
    if len(state.stages) == 1:
        return None
    a = draw.randrange(len(state.stages) - 1)
    (layers, mine), (more, other) = state.stages[a : a + 2]
    return State([*state.stages[:a], (layers + more, mine | other), *state.stages[a + 2 :]], state.spare)


def _split_stage(state: State, draw: random.Random) -> State | None:
    """The machines and layers of a stage are shared out to two."""
    a = draw.randrange(len(state.stages))
    layers, machines = state.stages[a]
    if layers == 1 or len(machines) == 1:
        return None
    shuffled = draw.sample(sorted(machines), len(machines))
    cut, k = draw.randrange(1, len(machines)), draw.randrange(1, layers)
    parts = [(k, frozenset(shuffled[:cut])), (layers - k, frozenset(shuffled[cut:]))]
    return State([*state.stages[:a], *parts, *state.stages[a + 1 :]], state.spare)


MOVES: tuple[Callable[[State, random.Random], State | None], ...] = (
    _swap_machines,
    _swap_machines,
    _move_machine,
    _swap_stages,
    _turn_stages,
    _shift_layer,
    _merge_stages,
    _split_stage,
)
