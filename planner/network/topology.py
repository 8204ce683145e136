"""Nodes, switches and cables as a graph; the path that bytes take from one node to another.

A node is called `POOL/INDEX`. Bytes take the path of fewest cables, of these the widest, of these the first by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from planner.network.ports import Cable
from specs.deployment import HardwareSpec
from specs.deployment.cables import cables


@dataclass
class Network:
    """`graph`: undirected; edges carry `bytes_per_s` (each direction) and `latency_s`."""

    graph: nx.Graph[str]
    _paths: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def path(self, source: str, target: str) -> tuple[str, ...]:
        """Names from `source` to `target`, both included. Raises `KeyError` where none leads there."""
        if source not in self._paths:
            self._paths[source] = self._paths_from(source)
        return self._paths[source][target]

    def cables(self, source: str, target: str) -> Iterator[Cable]:
        """The cables of a path, each as (from, to)."""
        path = self.path(source, target)
        return pairwise(path)

    def bytes_per_s(self, source: str, target: str) -> float:
        """What the narrowest cable of the path carries."""
        return min((self.capacity(cable) for cable in self.cables(source, target)), default=float("inf"))

    def latency_s(self, source: str, target: str) -> float:
        return float(sum(self.graph.edges[cable]["latency_s"] for cable in self.cables(source, target)))

    def capacity(self, cable: Cable) -> float:
        """Bytes per second of each direction."""
        return float(self.graph.edges[cable]["bytes_per_s"])

    def _paths_from(self, source: str) -> dict[str, tuple[str, ...]]:
        """Breadth first; among paths of equally many cables the widest, then the first by name."""
        best: dict[str, tuple[float, tuple[str, ...]]] = {source: (float("inf"), (source,))}
        frontier = [source]
        while frontier:
            reached: dict[str, tuple[float, tuple[str, ...]]] = {}
            for name in sorted(frontier):
                width, path = best[name]
                for other in sorted(self.graph[name]):
                    if other in best:
                        continue
                    found = (min(width, self.capacity((name, other))), (*path, other))
                    if other not in reached or found[0] > reached[other][0]:
                        reached[other] = found
            best |= reached
            frontier = list(reached)
        return {name: path for name, (_, path) in best.items()}


def declared_network(hardware: HardwareSpec) -> Network:
    """The declared graph. Cables between the same two ends add up; the longest latency of them counts."""
    graph: nx.Graph[str] = nx.Graph()
    for item in hardware.network.graph:
        for a, b in cables(item, hardware.pools):
            known = graph.edges[a, b] if graph.has_edge(a, b) else {"bytes_per_s": 0.0, "latency_s": 0.0}
            graph.add_edge(
                a,
                b,
                bytes_per_s=known["bytes_per_s"] + item.bandwidth_bytes_per_s,
                latency_s=max(known["latency_s"], item.latency_s),
            )
    return Network(graph)
