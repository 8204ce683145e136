"""Replicas of mixture-of-experts experts on devices so that the busiest device carries as little as possible.

Sets
    l in layers, e in experts, d in devices, n in nodes;  every device has the same number of slots
Parameters
    load[l,e]   tokens (or any other measure of work) that layer l sends to expert e
    R           replicas of a layer over all devices: R = slots x devices
Decisions
    r[l,e] >= 1                replicas of expert e; each carries load[l,e] / r[l,e]
    count[l,e,d] >= 0          how many of them sit on device d
Laws
    sum_e r[l,e] = R;  sum_d count[l,e,d] = r[l,e];  sum_e count[l,e,d] = slots
    where the groups of experts divide evenly among the nodes, all replicas of a group's experts sit in one node
Objective
    minimise, for each layer, max_d sum_e count[l,e,d] load[l,e] / r[l,e]

Layers are independent, so all of them are searched at once as rows of arrays. With one slot a device the best numbers
of replicas follow from apportionment, and with two the best packing of given replicas is to fold the sorted list; else
items go largest first to the least loaded device with a free slot, and are then swapped while that helps.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.optimize.expert_placement_bound import (
    apportion,
    few_counts,
    no_placement,
    paired_loads,
    plain_bound,
    sharpen,
)
from planner.optimize.expert_placement_pairs import close_pairs
from specs.errors import InputError, NoPlanError

MOST_PARTINGS = 2_000  # of groups among nodes that are all looked at
PARTINGS_TRIED = 3  # most even ones
SWAPS = 400
MOST_DONORS = 5  # of one replica move
TAIL = 0.985  # times the maximum load: level above which less is better
POLISHED = 2  # moves that look best by either measure before swaps, and are judged after them
WORTH_MOVING = 1.005  # times the bound: below it no replica moves
MOST_WORK = 20_000_000  # rows x replicas x devices of all replica moves


@dataclass(frozen=True)
class ExpertLoads:
    """One instance; `loads` is [layers, experts], not negative."""

    loads: np.ndarray
    replicas: int
    groups: int
    nodes: int
    devices: int

    def __post_init__(self) -> None:
        """Raises `InputError` for what is no instance and `NoPlanError` where no placement can exist."""
        for name in ("replicas", "groups", "nodes", "devices"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        if self.loads.ndim != 2 or not self.loads.size:
            raise InputError("must be a rectangular table of layers by experts", field="loads")
        if not np.isfinite(self.loads).all() or (self.loads < 0).any():
            raise InputError("must be finite and not negative", field="loads")
        if self.devices % self.nodes:
            raise InputError(f"{self.devices} devices do not divide among {self.nodes} nodes", field="devices")
        if self.replicas % self.devices:
            raise InputError(f"{self.replicas} replicas do not divide among {self.devices} devices", field="replicas")
        if self.experts % self.groups:
            raise InputError(f"{self.experts} experts do not divide into {self.groups} groups", field="groups")
        if self.replicas < self.experts:
            raise NoPlanError(
                f"{self.experts} experts need at least as many replicas; {self.replicas} are allowed",
                mends=(f"allow {math.ceil(self.experts / self.devices) * self.devices} replicas",),
            )

    @property
    def layers(self) -> int:
        return int(self.loads.shape[0])

    @property
    def experts(self) -> int:
        return int(self.loads.shape[1])

    @property
    def slots(self) -> int:
        """Replicas on one device."""
        return self.replicas // self.devices

    @property
    def by_node(self) -> bool:
        """Whether groups are kept within nodes: only where they divide evenly."""
        return self.nodes > 1 and self.groups % self.nodes == 0

    @property
    def partings(self) -> int:
        """Ways to part the groups among nodes."""
        size = self.groups // self.nodes
        return math.factorial(self.groups) // int(math.factorial(size) ** self.nodes * math.factorial(self.nodes))


@dataclass(frozen=True)
class ExpertPlacement:
    """`experts[l, d]` lists the experts on a device (one entry a slot); loads and bounds are [layers]."""

    experts: np.ndarray
    max_load: np.ndarray
    bound: np.ndarray


def place_experts(instance: ExpertLoads) -> ExpertPlacement:
    """The best placement found for each layer, and a load below which no placement of that layer can come."""
    replicas, devices = instance.replicas, instance.devices
    bound = plain_bound(instance.loads, replicas, devices)
    experts = _place_by_node(instance) if instance.by_node else balance(instance.loads, replicas, devices, bound)
    value = device_loads(instance.loads, experts).max(axis=1)

    def refuted(rows: np.ndarray, limit: np.ndarray) -> np.ndarray:
        loads = instance.loads[rows]
        if instance.by_node and instance.partings <= MOST_PARTINGS:
            return every_parting_fails(instance, loads, limit)
        return no_placement(loads, limit, replicas, devices)

    bound = sharpen(bound, value, refuted)
    if instance.slots == 2 and not instance.by_node:
        better, bound = close_pairs(instance.loads, value, bound, replicas)
        rows = np.array(list(better), dtype=np.int64)
        if len(rows):
            counts = np.stack(list(better.values()))
            experts[rows] = _move_replicas(instance.loads[rows], counts, devices, bound[rows], MOST_WORK // 4)
            value[rows] = device_loads(instance.loads[rows], experts[rows]).max(axis=1)
    return ExpertPlacement(experts, value, bound)


def device_loads(loads: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """[layers, devices]: what each device carries, counted again from the placement alone.

    Raises `ValueError` where an expert has no replica.
    """
    carried = np.empty(experts.shape[:2])
    for layer, (load, row) in enumerate(zip(loads, experts, strict=True)):
        replicas = np.bincount(row.ravel(), minlength=len(load))
        if len(replicas) != len(load) or (replicas == 0).any():
            raise ValueError(f"layer {layer}: every expert needs a replica, and only known experts have some")
        carried[layer] = (load / replicas)[row].sum(axis=1)
    return carried


# ---- search


def balance(loads: np.ndarray, replicas: int, devices: int, bound: np.ndarray) -> np.ndarray:
    """[rows, devices, slots]: replicas chosen and packed for each row of `loads`, without regard to nodes.

    A row's search ends near its `bound`, where no move helps, or with the work that is allowed to all rows together.
    """
    ways = few_counts(loads.shape[1], replicas) if replicas == 2 * devices else None
    counts = apportion(loads, replicas) if ways is None else ways[paired_loads(loads, ways).argmin(axis=0)]
    work = MOST_WORK if replicas > max(devices, loads.shape[1]) and ways is None else 0
    return _move_replicas(loads, counts, devices, bound, work)


def _move_replicas(loads: np.ndarray, counts: np.ndarray, devices: int, bound: np.ndarray, work: int) -> np.ndarray:
    """[rows, devices, slots]: packed, then single replicas moved while that helps and work is left."""
    experts, carried = pack(loads, counts, devices)
    rows = np.flatnonzero(carried.max(axis=1) > bound * WORTH_MOVING)
    while work > 0 and len(rows):
        work -= len(rows) * int(counts[0].sum()) * devices
        better, moved_counts, moved, moved_loads = _better_counts(
            loads[rows], counts[rows], experts[rows], carried[rows]
        )
        rows = rows[better]
        counts[rows], experts[rows], carried[rows] = moved_counts, moved, moved_loads
        rows = rows[carried[rows].max(axis=1) > bound[rows] * WORTH_MOVING]
    return experts


def pack(loads: np.ndarray, counts: np.ndarray, devices: int, *, polish: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Given numbers of replicas, ([rows, devices, slots] experts, [rows, devices] loads); `polish` swaps."""
    rows, replicas = len(loads), int(counts[0].sum())
    slots = replicas // devices
    of = np.repeat(np.tile(np.arange(loads.shape[1]), rows), counts.ravel()).reshape(rows, replicas)
    size = np.take_along_axis(loads / counts, of, axis=1)
    order = np.argsort(-size, axis=1, kind="stable")
    of, size = np.take_along_axis(of, order, axis=1), np.take_along_axis(size, order, axis=1)
    slot_of = _fold(replicas, devices) if slots <= 2 else None
    if slot_of is None:
        slot_of = _largest_first(size, devices)
    experts, packed = np.empty((2, rows, devices, slots))
    at = np.arange(rows)[:, None], slot_of // slots, slot_of % slots
    experts[at], packed[at] = of, size
    if slots > 2 and polish:
        _swap(experts, packed)
    return experts.astype(np.int64), packed.sum(axis=2)


def _fold(replicas: int, devices: int) -> np.ndarray:
    """Slots for a sorted list: the largest sits with the smallest, the second with the last but one, ..."""
    position = np.arange(replicas)
    if replicas == devices:
        return position
    return np.where(position < devices, 2 * position, 2 * (replicas - 1 - position) + 1)


def _largest_first(size: np.ndarray, devices: int) -> np.ndarray:
    """[rows, replicas] slot of each replica: into the least loaded device that has a free slot (LPT)."""
    rows, replicas = size.shape
    slots = replicas // devices
    every = np.arange(rows)
    carried, used = np.zeros((rows, devices)), np.zeros((rows, devices), dtype=np.int64)
    slot_of = np.empty((rows, replicas), dtype=np.int64)
    for position in range(replicas):
        device = np.argmin(carried, axis=1)
        slot_of[:, position] = device * slots + used[every, device]
        carried[every, device] += size[:, position]
        used[every, device] += 1
        full = used[every, device] == slots
        carried[every[full], device[full]] = np.inf
    return slot_of


def _swap(experts: np.ndarray, packed: np.ndarray) -> None:
    """In place: the busiest device of each row swaps a replica with another device while its row's maximum falls."""
    rows, devices, slots = packed.shape
    active = np.arange(rows)
    for _ in range(SWAPS):
        size = packed[active]
        carried = size.sum(axis=2)
        every = np.arange(len(active))
        busiest = np.argmax(carried, axis=1)
        most = carried[every, busiest]
        change = size[every, busiest][:, :, None, None] - size[:, None]  # [rows, slot, device, slot]: what leaves
        after = np.maximum(most[:, None, None, None] - change, carried[:, None, :, None] + change)
        after[every, :, busiest] = np.inf
        best = after.reshape(len(active), -1).argmin(axis=1)
        gained = after.reshape(len(active), -1)[every, best] < most * (1 - 1e-9)
        if not gained.any():
            return
        active, best, busiest = active[gained], best[gained], busiest[gained]
        slot, device, other = np.unravel_index(best, (slots, devices, slots))
        for array in (experts, packed):
            here, there = array[active, busiest, slot].copy(), array[active, device, other].copy()
            array[active, busiest, slot], array[active, device, other] = there, here


def _better_counts(
    loads: np.ndarray, counts: np.ndarray, experts: np.ndarray, carried: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The best move of one replica from one expert to another that `_moves` offers, for each row.

    A move is better where the maximum falls, or does not rise while less is left above a level a little below it: of
    many devices that carry nearly the maximum, one move mends one. ([rows] whether it is better, then counts, experts
    and device loads of the rows where it is).
    """
    takers, donors = _moves(loads, counts, experts)
    pairs = takers.shape[1] * donors.shape[1]
    trial = np.repeat(counts, pairs, axis=0)
    taker, donor = np.repeat(takers, donors.shape[1], axis=1).ravel(), np.tile(donors, takers.shape[1]).ravel()
    at = np.arange(len(trial))
    possible = np.flatnonzero((trial[at, donor] > 1) & (taker != donor))
    if not len(possible):
        nothing = np.zeros(len(loads), dtype=bool)
        return nothing, counts[nothing], experts[nothing], carried[nothing]
    trial[possible, taker[possible]] += 1
    trial[possible, donor[possible]] -= 1
    most = carried.max(axis=1)
    _, packed = pack(loads[possible // pairs], trial[possible], experts.shape[1], polish=False)
    ranked = []
    for measure in (packed.max(axis=1), _tail(packed, most[possible // pairs])):
        score = np.full(len(trial), np.inf)
        score[possible] = measure
        ranked.append(np.argsort(score.reshape(-1, pairs), axis=1, kind="stable")[:, :POLISHED])
    chosen = (np.hstack(ranked) + pairs * np.arange(len(loads))[:, None]).ravel()
    of = chosen // pairs
    found, packed = pack(loads[of], trial[chosen], experts.shape[1])
    reached, tail = packed.max(axis=1), _tail(packed, most[of])
    score = np.where(reached < most[of] * (1 - 1e-9), reached / most[of] - 1, tail / (most[of] * experts.shape[1]))
    score[reached > most[of] * (1 + 1e-12)] = np.inf
    best = score.reshape(len(loads), -1).argmin(axis=1) + 2 * POLISHED * np.arange(len(loads))
    better = (score[best] < 0) | (tail[best] < _tail(carried, most) * (1 - 1e-6))
    better &= np.isfinite(score[best])
    best = best[better]
    return better, trial[chosen[best]], found[best], packed[best]


def _tail(carried: np.ndarray, most: np.ndarray) -> np.ndarray:
    """[rows]: what devices carry above a level a little below a maximum, summed."""
    return np.asarray((carried - TAIL * most[:, None]).clip(0).sum(axis=1))


def _moves(loads: np.ndarray, counts: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([rows, takers], [rows, donors]) experts between which a replica may move.

    Takers: the largest and the smallest replica of the busiest device, and the largest replicas of all. Donors: those
    whose replicas stay smallest without it, and the largest replicas of the busiest device.
    """
    rows, _, slots = experts.shape
    each = loads / counts
    size = np.take_along_axis(each, experts.reshape(rows, -1), axis=1).reshape(experts.shape)
    every = np.arange(rows)
    busiest = np.argmax(size.sum(axis=2), axis=1)
    on_busiest = np.take_along_axis(experts[every, busiest], np.argsort(-size[every, busiest], axis=1), axis=1)
    largest = np.argsort(-each, axis=1, kind="stable")[:, :2]
    left = np.where(counts > 1, loads / np.maximum(counts - 1, 1), np.inf)
    donors = np.argsort(left, axis=1, kind="stable")[:, :MOST_DONORS]
    return np.hstack([on_busiest[:, [0, slots - 1]], largest]), np.hstack([donors, on_busiest[:, :2]])


# ---- nodes


def _place_by_node(instance: ExpertLoads) -> np.ndarray:
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
    subsets, partings = _subsets(instance.groups, instance.groups // instance.nodes)
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
    slot_of = _largest_first(np.take_along_axis(loads, order, axis=1), instance.nodes)
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


def every_parting_fails(instance: ExpertLoads, loads: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """[rows] of bool: whether each way to part the groups among nodes has a node that cannot keep the limit."""
    subsets, partings = _subsets(instance.groups, instance.groups // instance.nodes)
    experts = loads.reshape(len(loads), instance.groups, -1)[:, subsets].reshape(len(loads) * len(subsets), -1)
    replicas, devices = instance.replicas // instance.nodes, instance.devices // instance.nodes
    fails = no_placement(experts, np.repeat(limit, len(subsets)), replicas, devices).reshape(len(loads), -1)
    return np.asarray(np.all(np.any(fails[:, partings], axis=2), axis=1))


@cache
def _subsets(items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """([subsets, size] items of each part, [partings, parts] subsets of each way to part all items)."""
    subsets = list(itertools.combinations(range(items), size))
    index = {subset: position for position, subset in enumerate(subsets)}

    def rest(left: tuple[int, ...]) -> list[list[int]]:
        if not left:
            return [[]]
        parts = [(left[0], *others) for others in itertools.combinations(left[1:], size - 1)]
        return [[index[part], *more] for part in parts for more in rest(tuple(sorted(set(left) - set(part))))]

    return np.array(subsets), np.array(rest(tuple(range(items))))
