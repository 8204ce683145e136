"""Groups of experts that stay in one node: partings of the groups among nodes, and each node filled by itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np

from planner.optimize.expert_placement.bound import apportion, no_placement, plain_bound
from planner.optimize.expert_placement.few import BETTER, Settled, Work, settle
from planner.optimize.expert_placement.instance import ExpertLoads, device_loads
from planner.optimize.expert_placement.moves import WORTH_MOVING, balance
from planner.optimize.expert_placement.packing import largest_first

MOST_PARTINGS = 2_000  # of groups among nodes that are all looked at
PARTINGS_TRIED = 3  # most even ones


def place_by_node(instance: ExpertLoads) -> np.ndarray:
    """[layers, devices, slots]: the best of the most even partings and of the greedy one, each node filled by itself.

    A layer that reaches the load of its most loaded node, which no better parting has less of, is not tried again.
    """
    experts = fill_nodes(instance, by_load(instance))
    value = device_loads(instance.loads, experts).max(axis=1)
    if instance.partings > MOST_PARTINGS:
        return experts
    for homes, mean in even_partings(instance):
        rows = np.flatnonzero(value > mean * WORTH_MOVING)
        if not len(rows):
            break
        again = replace(instance, loads=instance.loads[rows])
        found = fill_nodes(again, homes[rows])
        reached = device_loads(again.loads, found).max(axis=1)
        better = reached < value[rows]
        experts[rows[better]], value[rows[better]] = found[better], reached[better]
    return experts


def even_partings(instance: ExpertLoads) -> list[tuple[np.ndarray, np.ndarray]]:
    """([layers, nodes, groups of a node], [layers] mean load of the fullest node) of the most even partings."""
    subsets, partings = parted(instance.groups, instance.groups // instance.nodes)
    totals = instance.loads.reshape(instance.layers, instance.groups, -1).sum(axis=2)[:, subsets].sum(axis=2)
    fullest = totals[:, partings].max(axis=2)
    order = np.argsort(fullest, axis=1, kind="stable")[:, :PARTINGS_TRIED].T
    every = np.arange(instance.layers)
    return [
        (np.asarray(subsets[partings[rank]]), fullest[every, rank] * instance.nodes / instance.devices)
        for rank in order
    ]


def by_load(instance: ExpertLoads) -> np.ndarray:
    """[layers, nodes, groups of a node]: groups to nodes largest first, as greedy balancers do."""
    loads = instance.loads.reshape(instance.layers, instance.groups, -1).sum(axis=2)
    order = np.argsort(-loads, axis=1, kind="stable")
    slot_of = largest_first(np.take_along_axis(loads, order, axis=1), instance.nodes)
    homes = np.empty_like(order)
    np.put_along_axis(homes, slot_of, order, axis=1)
    return homes.reshape(instance.layers, instance.nodes, -1)


def fill_nodes(instance: ExpertLoads, homes: np.ndarray) -> np.ndarray:
    """[layers, devices, slots]: each node of each layer balanced by itself, all of them as rows of one search."""
    per_group = instance.experts // instance.groups
    members = homes[..., None] * per_group + np.arange(per_group)
    members = members.reshape(instance.layers * instance.nodes, -1)
    loads = instance.loads[np.repeat(np.arange(instance.layers), instance.nodes)[:, None], members]
    replicas, devices = instance.replicas // instance.nodes, instance.devices // instance.nodes
    bound = plain_bound(loads, replicas, devices).reshape(instance.layers, -1).max(axis=1)
    local = balance(loads, replicas, devices, np.repeat(bound, instance.nodes))
    experts = np.take_along_axis(members, local.reshape(len(loads), -1), axis=1)
    return experts.reshape(instance.layers, instance.devices, instance.slots)


def settle_nodes(
    instance: ExpertLoads, experts: np.ndarray, value: np.ndarray, bound: np.ndarray, most_work: int
) -> None:
    """In place: few experts in a node, layer by layer: every parting whose fullest node may do better, node by node."""
    left = most_work
    rows = np.flatnonzero(value * BETTER > bound)
    for position, row in enumerate(rows):
        work = Work(left // (len(rows) - position))
        left -= work.left
        found = _settle_layer(instance, instance.loads[row], float(value[row]), float(bound[row]), work)
        left += max(0, work.left)
        value[row], bound[row] = found.value, found.bound
        if found.experts is not None:
            experts[row] = found.experts


def _settle_layer(instance: ExpertLoads, load: np.ndarray, value: float, bound: float, work: Work) -> Settled:
    """The best parting's fullest node; the bound is the least of all partings' ones, most even partings first."""
    subsets, partings = parted(instance.groups, instance.groups // instance.nodes)
    replicas, devices = instance.replicas // instance.nodes, instance.devices // instance.nodes
    per_group = instance.experts // instance.groups
    members = (subsets[..., None] * per_group + np.arange(per_group)).reshape(len(subsets), -1)
    least = plain_bound(load[members], replicas, devices)
    counts = apportion(load[members], replicas)
    known: dict[int, Settled] = {}
    experts, lowest = None, np.inf
    fullest = least[partings].max(axis=1)
    order = np.argsort(fullest, kind="stable")
    for position, parting in enumerate(partings[order]):
        if fullest[order[position]] >= value * BETTER:
            break
        own = 0.0
        for subset in parting[np.argsort(-least[parting], kind="stable")]:
            if subset not in known:
                known[subset] = settle(load[members[subset]], counts[subset], devices, value, least[subset], work)
            own = max(own, known[subset].bound)
            if known[subset].experts is None or known[subset].value >= value * BETTER:
                break
        else:
            nodes = [known[subset] for subset in parting]
            value = max(node.value for node in nodes)
            experts = np.vstack([members[s][node.experts] for s, node in zip(parting, nodes, strict=True)])
        lowest = min(lowest, own)
    return Settled(value, experts, max(bound, min(value, lowest)))


def every_parting_fails(instance: ExpertLoads, loads: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """[rows] of bool: whether each way to part the groups among nodes has a node that cannot keep the limit."""
    subsets, partings = parted(instance.groups, instance.groups // instance.nodes)
    experts = loads.reshape(len(loads), instance.groups, -1)[:, subsets].reshape(len(loads) * len(subsets), -1)
    replicas, devices = instance.replicas // instance.nodes, instance.devices // instance.nodes
    fails = no_placement(experts, np.repeat(limit, len(subsets)), replicas, devices).reshape(len(loads), -1)
    return np.asarray(np.all(np.any(fails[:, partings], axis=2), axis=1))


@cache
def parted(items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """([subsets, size] items of each part, [partings, parts] subsets of each way to part all items)."""
    subsets = list(itertools.combinations(range(items), size))
    index = {subset: position for position, subset in enumerate(subsets)}

    def rest(left: tuple[int, ...]) -> list[list[int]]:
        if not left:
            return [[]]
        parts = [(left[0], *others) for others in itertools.combinations(left[1:], size - 1)]
        return [[index[part], *more] for part in parts for more in rest(tuple(sorted(set(left) - set(part))))]

    return np.array(subsets), np.array(rest(tuple(range(items))))
