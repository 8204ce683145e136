"""The cheapest plan for every slot of a cycle, changes included: a shortest path over slots and plans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import networkx as nx

FEWER = 1e-9  # share of the value that a change costs beside what it does: of equal paths, the one that changes less


def cheapest_cycle(
    values: Sequence[Mapping[str, float]], change: Callable[[str, str], float | None]
) -> tuple[str, ...] | None:
    """A plan for each slot with the least sum of values and changes; the last slot is followed by the first.

    `values`: by slot, the value over the slot of each plan that may run in it. `change`: value of changing from one
    plan to another; None where that cannot be done. Returns None where there is no way through.

    A directed acyclic graph has a node for each (slot, plan) and an arc for each change; for every plan of the first
    slot, the shortest path that comes back to it (Dijkstra: no value is negative). Exact.
    """
    scale = FEWER * max((value for slot in values for value in slot.values()), default=0.0)
    prices = _prices(values, change, scale)
    graph: Any = nx.DiGraph()
    for index, (here, there) in enumerate(itertools.pairwise(values)):
        for before in here:
            for after, value in there.items():
                if (price := prices[before, after]) is not None:
                    graph.add_edge((index, before), (index + 1, after), weight=price + value)
    best: tuple[float, tuple[str, ...]] | None = None
    last = len(values) - 1
    for first, value in values[0].items():
        graph.add_node((0, first))
        found: Any = nx.single_source_dijkstra(graph, (0, first))
        lengths, paths = found
        for plan in values[last]:
            back = prices[plan, first]
            if (last, plan) in lengths and back is not None:
                total = value + lengths[last, plan] + back
                names = tuple(str(name) for _, name in paths[last, plan])
                if best is None or (total, names) < best:
                    best = total, names
    return None if best is None else best[1]


def _prices(
    values: Sequence[Mapping[str, float]], change: Callable[[str, str], float | None], scale: float
) -> dict[tuple[str, str], float | None]:
    """What each change costs, each asked for once."""
    names = list(dict.fromkeys(name for slot in values for name in slot))
    found: dict[tuple[str, str], float | None] = {}
    for before in names:
        for after in names:
            price = 0.0 if before == after else change(before, after)
            found[before, after] = price if price is None or before == after else price + scale
    return found
