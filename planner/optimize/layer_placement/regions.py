"""Regions: machines that fast links join, slow ones part; and placements in which groups of regions work side by side.

Where the links between regions are too slow for a pipeline that runs through all of them, each group of regions that
holds all layers can be a pipeline of its own; the flows of the groups add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import networkx as nx

from planner.optimize.layer_placement.instance import LayerInstance
from specs.errors import CapstanError

MOST_REGIONS = 5  # 52 ways to group them
SLOWER = 2.0  # times the capacity: two neighbouring capacities this far apart part slow links from fast ones
MOST_LEVELS = 4  # of capacities at which regions are looked for, the widest steps first

Machines = tuple[int, ...]


def groupings(instance: LayerInstance) -> list[tuple[Machines, ...]]:
    """Ways to part the machines into two or more groups of whole regions, each of which can hold every layer."""
    found: dict[tuple[Machines, ...], None] = {}
    for parts in region_levels(instance):
        for blocks in _partitions(parts):
            groups = tuple(sorted(tuple(sorted(itertools.chain(*block))) for block in blocks))
            if len(groups) > 1 and all(holds_all_layers(instance, group) for group in groups):
                found[groups] = None
    return list(found)


def region_levels(instance: LayerInstance) -> list[list[Machines]]:
    """Regions at each level of capacity: what stays connected, in either direction, by links above the level."""
    capacities = sorted({capacity for capacity in instance.links.values() if capacity > 0})
    steps = sorted(itertools.pairwise(capacities), key=lambda step: step[0] / step[1])[:MOST_LEVELS]
    levels = [fast for slow, fast in steps if fast >= slow * SLOWER] + capacities[:1]
    found: list[list[Machines]] = []
    for fast in levels:
        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(len(instance.types)))
        graph.add_edges_from(pair for pair, capacity in instance.links.items() if capacity >= fast)
        parts = sorted(tuple(sorted(part)) for part in nx.connected_components(graph))
        if 1 < len(parts) <= MOST_REGIONS and parts not in found:
            found.append(parts)
    return found


def holds_all_layers(instance: LayerInstance, machines: Machines) -> bool:
    """Whether these machines' memory suffices for every layer once."""
    return sum(max(instance.tokens_per_s[instance.types[i]], default=0) for i in machines) >= instance.layers


def restricted(instance: LayerInstance, machines: Machines) -> LayerInstance | None:
    """The instance with these machines only, numbered in order; None where they reach no path by themselves."""
    number = {machine: index for index, machine in enumerate(machines)}
    try:
        return LayerInstance(
            layers=instance.layers,
            tokens_per_s=instance.tokens_per_s,
            types=tuple(instance.types[machine] for machine in machines),
            links={(number[i], number[j]): c for (i, j), c in instance.links.items() if i in number and j in number},
            sources={number[i]: capacity for i, capacity in instance.sources.items() if i in number},
            sinks={number[i]: capacity for i, capacity in instance.sinks.items() if i in number},
        )
    except CapstanError:
        return None


def _partitions(parts: list[Machines]) -> Iterator[list[list[Machines]]]:
    """All ways to group the parts."""
    if not parts:
        yield []
        return
    for rest in _partitions(parts[1:]):
        yield [[parts[0]], *rest]
        for index, block in enumerate(rest):
            yield [*rest[:index], [parts[0], *block], *rest[index + 1 :]]
