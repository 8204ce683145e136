"""The best placement found for each layer, with a load below which no placement of that layer can come.

Layers are independent, so all of them are searched at once as rows of arrays; equal layers, whatever the order of their
experts, are one row. With one slot a device the best numbers of replicas follow from apportionment. Else items go
largest first to the least loaded device with a free slot (with two slots folding the sorted list is best), are swapped
while that helps, and single replicas move from one expert to another; where experts are few every choice is searched,
and where they are many linear programmes over prices sharpen the bounds and propose numbers of replicas.
"""

from __future__ import annotations

import numpy as np

from planner.optimize.expert_placement.bound import no_placement, plain_bound, sharpen
from planner.optimize.expert_placement.few import BETTER, MOST_REPLICAS, Work, settle
from planner.optimize.expert_placement.instance import ExpertLoads, ExpertPlacement, device_loads
from planner.optimize.expert_placement.moves import MOST_WORK, balance, move_replicas
from planner.optimize.expert_placement.nodes import MOST_PARTINGS, every_parting_fails, place_by_node, settle_nodes
from planner.optimize.expert_placement.prices import STEPS, StepPrices, price_steps, unaffordable

MOST_SEARCHED = 50_000_000  # partial packings times companions, of all layers where experts are few
MOST_ROWS = 520_000  # of programmes, times the square of slots, of all layers: with more slots they take longer
BATCH = 8  # layers whose programmes are solved before their replicas move, all together
MOST_FOR_A_LAYER = 8
WANTED = 1.015  # times the limit that is tried first: refuted, it suffices, and one programme does for a layer
OPEN, OPEN_OF_MANY = 1.01, 1.015  # times the bound: layers that are looked at; where they are more than MANY
MANY = 16


def place_experts(instance: ExpertLoads, *, searched: int = MOST_SEARCHED) -> ExpertPlacement:
    """The best placement found for each layer, and a load below which no placement of that layer can come.

    `searched` bounds the work where experts are few; 50 million take one to two seconds.
    """
    if instance.by_node:
        return _place_in_nodes(instance, searched)
    order = np.argsort(-instance.loads, axis=1, kind="stable")
    loads, of = np.unique(np.take_along_axis(instance.loads, order, axis=1), axis=0, return_inverse=True)
    experts, bound = _place_rows(loads, instance.replicas, instance.devices, searched)
    found = np.take_along_axis(order, experts[of].reshape(instance.layers, -1), axis=1)
    found = found.reshape(instance.layers, instance.devices, instance.slots)
    value = device_loads(instance.loads, found).max(axis=1)
    return ExpertPlacement(found, value, np.minimum(bound[of], value))


def _place_rows(loads: np.ndarray, replicas: int, devices: int, searched: int) -> tuple[np.ndarray, np.ndarray]:
    """([rows, devices, slots] experts, [rows] bounds) without regard to nodes."""
    bound = plain_bound(loads, replicas, devices)
    experts = balance(loads, replicas, devices, bound)
    value = device_loads(loads, experts).max(axis=1)
    bound = sharpen(bound, value, lambda rows, limit: no_placement(loads[rows], limit, replicas, devices))
    few = replicas <= MOST_REPLICAS
    if few:
        searched = _settle_rows(loads, experts, value, bound, searched)
    if replicas // devices in STEPS:
        bound = _close_gaps(loads, experts, value, bound)
    if few:
        _settle_rows(loads, experts, value, bound, searched)
    return experts, bound


def _settle_rows(loads: np.ndarray, experts: np.ndarray, value: np.ndarray, bound: np.ndarray, searched: int) -> int:
    """In place: few experts, layer by layer, each with an equal share of the work that is left; what is left then."""
    rows = np.flatnonzero(value * BETTER > bound)
    for position, row in enumerate(rows):
        counts = np.bincount(experts[row].ravel(), minlength=loads.shape[1])
        share = searched // (len(rows) - position)
        work = Work(share)
        found = settle(loads[row], counts, experts.shape[1], float(value[row]), float(bound[row]), work)
        searched -= share - max(0, work.left)
        value[row], bound[row] = found.value, found.bound
        if found.experts is not None:
            experts[row] = found.experts
    return searched


def _close_gaps(loads: np.ndarray, experts: np.ndarray, value: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """[rows] bounds; better placements are written into `experts` and `value`. The widest gaps come first.

    Limits halve what is open: one that is refuted raises the bounds, else lower limits follow; the numbers of replicas
    that a programme proposes are tried.
    """
    devices, slots = experts.shape[1:]
    left, work = MOST_ROWS, MOST_WORK * 3 // 4
    narrow = OPEN if len(loads) <= MANY else OPEN_OF_MANY
    kept = value.copy()  # the lowest limit that was not refuted
    tried = np.zeros(len(loads), dtype=int)
    while left > 0:
        gaps = np.where(tried < MOST_FOR_A_LAYER, value / np.maximum(bound, 1e-300), 0.0)
        batch = np.argsort(-gaps, kind="stable")[:BATCH]
        batch = batch[gaps[batch] > narrow]
        if not len(batch):
            break
        proposed: dict[int, np.ndarray] = {}
        for row in batch:
            if value[row] < bound[row] * narrow or left <= 0:
                continue
            limit = value[row] / WANTED
            if not bound[row] < limit < kept[row] * BETTER:
                limit = (kept[row] + bound[row]) / 2
            steps = STEPS[slots][tried[row] % len(STEPS[slots])]
            tried[row] += 1
            priced = price_steps(loads[row] / limit, devices * slots, slots, steps)
            if priced is None:
                continue
            left -= priced.rows * slots**2
            if priced.counts is not None:
                proposed[int(row)] = priced.counts
            raised = _raised(loads, value, bound, priced.prices, devices * slots, row, limit)
            kept[row] = limit if raised[row] < limit else kept[row]
            bound = raised
        work = _try_counts(loads, proposed, experts, value, bound, work)
        kept = np.minimum(kept, value)
    return bound


def _raised(
    loads: np.ndarray, value: np.ndarray, bound: np.ndarray, prices: StepPrices, replicas: int, row: int, limit: float
) -> np.ndarray:
    """[rows] bounds that the prices prove, which were made for one row at a limit."""

    def refuted(rows: np.ndarray, limit: np.ndarray) -> np.ndarray:
        return unaffordable(loads[rows], limit, replicas, prices)

    bound = bound.copy()
    if refuted(np.array([row]), np.array([limit]))[0]:
        bound[row] = max(bound[row], limit)
    rows = np.flatnonzero(value > bound * OPEN)
    bound[rows] = sharpen(bound[rows], value[rows], lambda some, limit: refuted(rows[some], limit))
    return bound


def _try_counts(
    loads: np.ndarray,
    proposed: dict[int, np.ndarray],
    experts: np.ndarray,
    value: np.ndarray,
    bound: np.ndarray,
    work: int,
) -> int:
    """In place: placements of these numbers of replicas by row, moved on from there, where better; `work` left."""
    rows = np.array(list(proposed), dtype=np.int64)
    if not len(rows):
        return work
    counts = np.stack(list(proposed.values()))
    found, left = move_replicas(loads[rows], counts, experts.shape[1], bound[rows], min(work, MOST_WORK // 8))
    reached = device_loads(loads[rows], found).max(axis=1)
    better = reached < value[rows]
    experts[rows[better]], value[rows[better]] = found[better], reached[better]
    return work - min(work, MOST_WORK // 8) + left


def _place_in_nodes(instance: ExpertLoads, searched: int) -> ExpertPlacement:
    """Groups of experts stay in one node."""
    bound = plain_bound(instance.loads, instance.replicas, instance.devices)
    experts = place_by_node(instance)
    value = device_loads(instance.loads, experts).max(axis=1)
    listed = instance.partings <= MOST_PARTINGS

    def refuted(rows: np.ndarray, limit: np.ndarray) -> np.ndarray:
        loads = instance.loads[rows]
        if listed:
            return every_parting_fails(instance, loads, limit)
        return no_placement(loads, limit, instance.replicas, instance.devices)

    bound = sharpen(bound, value, refuted)
    if listed and instance.replicas // instance.nodes <= MOST_REPLICAS:
        settle_nodes(instance, experts, value, bound, searched)
    return ExpertPlacement(experts, value, np.minimum(bound, value))
