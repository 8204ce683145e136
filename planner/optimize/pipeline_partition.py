"""Stages of a training pipeline: parts of the operator graph in order, each on one machine or more (PipeDream's model).

Sets
    operators of a directed acyclic graph; its ideals: sets of operators that hold all predecessors of each member
Parameters
    compute[i]      seconds of operator i, forward and backward, for one minibatch
    weights[i]      bytes of its parameters;  bandwidth in bytes/s between machines;  M machines
Decisions
    empty = I_0 < I_1 < ... < I_s = all    stage t holds the operators of I_t that are not in I_(t-1)
    m_t >= 1                               machines of stage t, sum_t m_t <= M
Law
    m machines take turns with the minibatches of a stage and agree on the gradients of each by a ring all-reduce:
    stage_s(operators, m) = (compute + 4 (m - 1) / m weights / bandwidth) / m
    activations move while others compute and do not count
Objective
    minimise max_t stage_s: the pipeline finishes a minibatch as often as its slowest stage does

Dynamic programming over ideals and machines looks at every such partition, so its value is the optimum, and the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import networkx as nx
import numpy as np

from specs.errors import InputError

Seconds = TypeVar("Seconds", float, np.ndarray)  # and bytes: one, or many at once

MOST_IDEALS = 4_000  # pairs of them are looked at for every number of machines


@dataclass(frozen=True)
class Operator:
    """One node of the graph: seconds of a minibatch, forward and backward, and bytes of parameters."""

    compute_s: float
    weight_bytes: float


@dataclass(frozen=True)
class Stage:
    """`first` and `end` count ideals in order (end exclusive), as published splits do; on a chain, operators."""

    first: int
    end: int
    operators: tuple[str, ...]
    machines: int
    seconds: float


@dataclass(frozen=True)
class Partition:
    """Stages in order; `seconds` of the slowest is the time for each minibatch."""

    stages: tuple[Stage, ...]
    seconds: float


def stage_seconds(compute_s: Seconds, weight_bytes: Seconds, machines: int, bytes_per_s: float) -> Seconds:
    """Seconds for each minibatch of a stage on `machines` machines."""
    return (compute_s + 4 * (machines - 1) * weight_bytes / (machines * bytes_per_s)) / machines


def partition(graph: nx.DiGraph[str], machines: int, bytes_per_s: float) -> Partition:
    """The partition with the least time per minibatch; nodes carry an `Operator` as `operator`.

    Raises `InputError` for a graph with cycles, without operators, or with too many ideals.
    """
    ideals = ordered_ideals(graph)
    compute = [sum(graph.nodes[node]["operator"].compute_s for node in ideal) for ideal in ideals]
    weights = [sum(graph.nodes[node]["operator"].weight_bytes for node in ideal) for ideal in ideals]
    best = _best(ideals, np.array(compute), np.array(weights), machines, bytes_per_s)
    stages: list[Stage] = []
    end, left = len(ideals) - 1, machines
    while end > 0:
        _, first, taken = best[end][left]
        inside = ideals[end] - ideals[first]
        seconds = stage_seconds(
            sum(graph.nodes[node]["operator"].compute_s for node in inside),
            sum(graph.nodes[node]["operator"].weight_bytes for node in inside),
            taken,
            bytes_per_s,
        )
        operators = tuple(node for node in nx.lexicographical_topological_sort(graph) if node in inside)
        stages.insert(0, Stage(first, end, operators, taken, seconds))
        end, left = first, left - taken
    return Partition(tuple(stages), max(stage.seconds for stage in stages))


def _best(
    ideals: list[frozenset[str]], compute: np.ndarray, weights: np.ndarray, machines: int, bytes_per_s: float
) -> list[list[tuple[float, int, int]]]:
    """[ideal][machines allowed]: (seconds, ideal before the last stage, machines of it); of equals, the smallest."""
    seconds = np.zeros((len(ideals), machines + 1))  # of the best partition of each ideal
    best = [[(0.0, 0, 0)] * (machines + 1)]
    for end in range(1, len(ideals)):
        below = np.array([k for k in range(end) if ideals[k] < ideals[end]])
        row = [(math.inf, 0, 0)] * (machines + 1)
        for m in range(1, machines + 1):
            stage = stage_seconds(compute[end] - compute[below], weights[end] - weights[below], m, bytes_per_s)
            slowest = np.maximum(seconds[below, : machines - m + 1], stage[:, None])
            for allowed, first in enumerate(slowest.argmin(axis=0), m):
                row[allowed] = min(row[allowed], (float(slowest[first, allowed - m]), int(below[first]), m))
        seconds[end] = [entry[0] for entry in row]
        best.append(row)
    return best


def ordered_ideals(graph: nx.DiGraph[str]) -> list[frozenset[str]]:
    """All ideals, small ones first; the first is empty and the last holds every operator."""
    if not graph or not nx.is_directed_acyclic_graph(graph):
        raise InputError("the graph needs at least one operator and must not have cycles", field="graph")
    found = {frozenset[str]()}
    frontier = list(found)
    while frontier:
        ideal = frontier.pop()
        for node in graph:
            grown = ideal | {node}
            if node not in ideal and ideal.issuperset(graph.pred[node]) and grown not in found:
                found.add(grown)
                frontier.append(grown)
        if len(found) > MOST_IDEALS:
            raise InputError(f"the graph branches into more than {MOST_IDEALS} ideals", field="graph")
    return sorted(found, key=lambda ideal: (len(ideal), sorted(ideal)))
