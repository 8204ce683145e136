"""What is given, what a placement is worth: an instance, its graph, and the maximum flow through a placement.

Sets
    machines i, each of a type g;  layers 0..L-1
Parameters
    tokens_per_s[g][k]   what a machine of type g carries when it holds k layers, for the k that fit into its memory
    links[i,j], sources[i], sinks[i]   tokens/s between machines, into the first and out of the last layer
Decisions
    placement: machine -> [first, end), the layers that it holds; a machine may hold none
Objective
    maximise the flow of tokens whose path covers layers 0..L-1 in order, entering each machine at its first layer:
    over a link i -> j only where end[i] = first[j], from the source only where first = 0, to the sink where end = L
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import networkx as nx

from specs.errors import InputError, NoPlanError

EXACT = 2**44  # capacities times this are whole: networkx's preflow fails where float residues are left

Placement = dict[int, tuple[int, int]]
Node = str | tuple[int, str]  # source, sink, or a machine's way in or out
SOURCE, SINK = "source", "sink"


@dataclass(frozen=True)
class LayerInstance:
    """`types[machine]` names its throughputs; links, sources and sinks that are not listed do not exist."""

    layers: int
    tokens_per_s: dict[str, dict[int, float]]
    types: tuple[str, ...]
    links: dict[tuple[int, int], float]
    sources: dict[int, float]
    sinks: dict[int, float]

    def __post_init__(self) -> None:
        """Raises `InputError` for what is no instance, `NoPlanError` where no placement can carry anything."""
        if self.layers < 1:
            raise InputError("must be at least 1", field="layers")
        if not self.types:
            raise InputError("there are no machines", field="machines")
        for name in self.types:
            if name not in self.tokens_per_s:
                raise InputError(f"unknown machine type {name!r}", field="machines")
        ends = {machine for link in self.links for machine in link} | self.sources.keys() | self.sinks.keys()
        unknown = sorted(end for end in ends if not 0 <= end < len(self.types))
        if unknown:
            raise InputError(f"machine {unknown[0]} does not exist; there are {len(self.types)}", field="links")
        if any(k < 1 for speeds in self.tokens_per_s.values() for k in speeds):
            raise InputError("a machine holds at least 1 layer", field="machine_types")
        lost = self.unreachable
        if len(lost) == len(self.types):
            raise NoPlanError("no machine lies on a path of links from source to sink", mends=("add links",))
        most = sum(
            max((k for k, speed in self.tokens_per_s[name].items() if speed > 0), default=0)
            for machine, name in enumerate(self.types)
            if machine not in lost
        )
        if most < self.layers:
            without = f", without {len(lost)} on no path of links from source to sink" if lost else ""
            raise NoPlanError(
                f"all machines together hold {most} layers of {self.layers}{without}",
                mends=("add machines, or machines with more memory",),
            )

    @cached_property
    def unreachable(self) -> list[int]:
        """Machines that no chain of links joins to source and sink: nothing flows through them."""
        graph: nx.DiGraph[object] = nx.DiGraph()
        graph.add_edges_from(self.links)
        graph.add_nodes_from(range(len(self.types)))
        graph.add_edges_from((SOURCE, machine) for machine in self.sources)
        graph.add_edges_from((machine, SINK) for machine in self.sinks)
        if SOURCE not in graph or SINK not in graph:
            return list(range(len(self.types)))
        on_path = nx.descendants(graph, SOURCE) & nx.ancestors(graph, SINK)
        return [machine for machine in range(len(self.types)) if machine not in on_path]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Machines of each type, types in order of appearance."""
        return {name: self.types.count(name) for name in dict.fromkeys(self.types)}

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each machine the first one that it can change places with without any link changing (itself, if none)."""
        first: list[int] = []
        for machine in range(len(self.types)):
            first.append(next((other for other in dict.fromkeys(first) if self._alike(other, machine)), machine))
        return tuple(first)

    def _alike(self, one: int, other: int) -> bool:
        links = self.links
        return (
            self.types[one] == self.types[other]
            and self.sources.get(one) == self.sources.get(other)
            and self.sinks.get(one) == self.sinks.get(other)
            and links.get((one, other)) == links.get((other, one))
            and all(
                links.get((one, i)) == links.get((other, i)) and links.get((i, one)) == links.get((i, other))
                for i in range(len(self.types))
                if i not in (one, other)
            )
        )

    def between(self, one: int, other: int) -> float:
        """Capacity of the link from a machine like `one` to another machine like `other`; 0 where there is none."""
        if one == other:  # of two that are alike, those between any two of them are equal
            other = self.second.get(one, one)
        return self.links.get((one, other), 0.0)

    @cached_property
    def second(self) -> dict[int, int]:
        """Of each first machine that others are like, one of these."""
        return {first: machine for machine, first in enumerate(self.alike) if machine != first}

    def speed(self, machine: int, layers: int) -> float:
        """Tokens/s of a machine that holds so many layers; 0 where they do not fit."""
        return self.tokens_per_s[self.types[machine]].get(layers, 0.0)


def placement_graph(instance: LayerInstance, placement: Placement) -> nx.DiGraph[Node]:
    """Source, sink and two nodes a machine, capacities times EXACT; raises `ValueError` for what is no placement."""
    graph: nx.DiGraph[Node] = nx.DiGraph()
    graph.add_nodes_from([SOURCE, SINK])
    for machine, (first, end) in placement.items():
        if not 0 <= first < end <= instance.layers or instance.speed(machine, end - first) <= 0:
            raise ValueError(f"machine {machine} cannot hold layers {first} to {end}")
        graph.add_edge((machine, "in"), (machine, "out"), capacity=_whole(instance.speed(machine, end - first)))
        if first == 0 and machine in instance.sources:
            graph.add_edge(SOURCE, (machine, "in"), capacity=_whole(instance.sources[machine]))
        if end == instance.layers and machine in instance.sinks:
            graph.add_edge((machine, "out"), SINK, capacity=_whole(instance.sinks[machine]))
    for (tail, head), capacity in instance.links.items():
        if tail in placement and head in placement and placement[tail][1] == placement[head][0]:
            graph.add_edge((tail, "out"), (head, "in"), capacity=_whole(capacity))
    return graph


def _whole(tokens_per_s: float) -> int:
    return int(tokens_per_s * EXACT)


def max_flow(instance: LayerInstance, placement: Placement) -> float:
    """Tokens/s that the placement carries."""
    value, _ = nx.maximum_flow(placement_graph(instance, placement), SOURCE, SINK)
    return int(value) / EXACT
