"""Maximum flow through stages or placements, by Dinic's algorithm: what the search asks thousands of times."""

from __future__ import annotations

from planner.optimize.layer_placement.instance import LayerInstance, Placement

Group = tuple[int, frozenset[int]]  # layers of a stage and its machines
RESIDUE = 1e-9  # tokens/s that are nothing


def pipeline_flow(instance: LayerInstance, stages: list[Group]) -> float:
    """Tokens/s from the source through all stages to the sink; equal to `max_flow` up to rounding.

    Machines of a stage that are alike stand in for one another, so their even shares of any flow are a flow as well:
    they are one node, with the capacities of all of them.
    """
    network = _Network()
    before: list[tuple[int, int, int]] = []
    for position, (layers, machines) in enumerate(stages):
        entered = []
        for kind, count in counted(instance, machines):
            inner, outer = network.node(), network.node()
            network.join(inner, outer, count * instance.speed(kind, layers))
            if position == 0:
                network.join(0, inner, count * instance.sources.get(kind, 0.0))
            for other, many, its_outer in before:
                network.join(its_outer, inner, many * count * instance.between(other, kind))
            if position == len(stages) - 1:
                network.join(outer, 1, count * instance.sinks.get(kind, 0.0))
            entered.append((kind, count, outer))
        before = entered
    return network.push_all()


def counted(instance: LayerInstance, machines: frozenset[int]) -> list[tuple[int, int]]:
    """Machines that are alike: (the first of them, how many of these are here)."""
    counts: dict[int, int] = {}
    for machine in sorted(machines):
        first = instance.alike[machine]
        counts[first] = counts.get(first, 0) + 1
    return list(counts.items())


def placement_flow(instance: LayerInstance, placement: Placement) -> float:
    """Tokens/s of any placement; equal to `max_flow` up to rounding."""
    network = _Network()
    begun: dict[int, list[tuple[int, int]]] = {}
    ended: list[tuple[int, int, int]] = []
    for machine, (first, end) in placement.items():
        inner, outer = network.node(), network.node()
        network.join(inner, outer, instance.speed(machine, end - first))
        if first == 0:
            network.join(0, inner, instance.sources.get(machine, 0.0))
        if end == instance.layers:
            network.join(outer, 1, instance.sinks.get(machine, 0.0))
        begun.setdefault(first, []).append((machine, inner))
        ended.append((machine, end, outer))
    for machine, end, outer in ended:
        for other, inner in begun.get(end, ()):
            network.join(outer, inner, instance.links.get((machine, other), 0.0))
    return network.push_all()


class _Network:
    """Arcs in pairs with their reverses; node 0 is the source and 1 the sink."""

    def __init__(self) -> None:
        self.arcs: list[list[int]] = [[], []]
        self.head: list[int] = []
        self.room: list[float] = []

    def node(self) -> int:
        self.arcs.append([])
        return len(self.arcs) - 1

    def join(self, tail: int, head: int, capacity: float) -> None:
        if capacity > 0:
            for here, there, room in ((tail, head, capacity), (head, tail, 0.0)):
                self.arcs[here].append(len(self.head))
                self.head.append(there)
                self.room.append(room)

    def push_all(self) -> float:
        total = 0.0
        while (level := self._levels())[1] >= 0:
            following = [0] * len(self.arcs)
            pushed = self._push(0, float("inf"), level, following)
            if pushed <= RESIDUE:
                break
            total += pushed
        return total

    def _levels(self) -> list[int]:
        """Distance from the source along arcs with room; -1 where there is no path."""
        level = [-1] * len(self.arcs)
        level[0] = 0
        queue = [0]
        for node in queue:
            for arc in self.arcs[node]:
                if self.room[arc] > RESIDUE and level[self.head[arc]] < 0:
                    level[self.head[arc]] = level[node] + 1
                    queue.append(self.head[arc])
        return level

    def _push(self, node: int, most: float, level: list[int], following: list[int]) -> float:
        """As much as goes on from a node to the sink, up to `most`, each arc one level further."""
        if node == 1:
            return most
        arcs, room, head = self.arcs[node], self.room, self.head
        total, deeper = 0.0, level[node] + 1
        while following[node] < len(arcs):
            arc = arcs[following[node]]
            if room[arc] > RESIDUE and level[head[arc]] == deeper:
                pushed = self._push(head[arc], min(most - total, room[arc]), level, following)
                room[arc] -= pushed
                room[arc ^ 1] += pushed
                total += pushed
                if most - total <= RESIDUE:
                    return total
            following[node] += 1
        return total
