"""Numbers of replicas for many layers at once (rows): apportioned, then moved one by one while that helps."""

from __future__ import annotations

import numpy as np

from planner.optimize.expert_placement.bound import apportion
from planner.optimize.expert_placement.packing import pack

MOST_DONORS = 5  # of one replica move
TAIL = 0.985  # times the maximum load: level above which less is better
POLISHED = 2  # moves that look best by either measure before swaps, and are judged after them
WORTH_MOVING = 1.005  # times the bound: below it no replica moves
LEAST_ROWS = 2  # fewer take as long
MOST_WORK = 8_000_000  # rows x replicas x devices of all replica moves


def balance(loads: np.ndarray, replicas: int, devices: int, bound: np.ndarray) -> np.ndarray:
    """[rows, devices, slots]: replicas chosen and packed for each row of `loads`, without regard to nodes.

    A row's search ends near its `bound`, where no move helps, or with the work that is allowed to all rows together.
    """
    work = MOST_WORK if replicas > max(devices, loads.shape[1]) else 0
    return move_replicas(loads, apportion(loads, replicas), devices, bound, work)[0]


def move_replicas(
    loads: np.ndarray, counts: np.ndarray, devices: int, bound: np.ndarray, work: int
) -> tuple[np.ndarray, int]:
    """([rows, devices, slots], what is left of `work`): packed, then single replicas moved while that helps."""
    experts, carried = pack(loads, counts, devices)
    rows = np.flatnonzero(carried.max(axis=1) > bound * WORTH_MOVING)
    while work > 0 and len(rows):
        work -= max(len(rows), LEAST_ROWS) * int(counts[0].sum()) * devices
        better, moved_counts, moved, moved_loads = _better_counts(
            loads[rows], counts[rows], experts[rows], carried[rows]
        )
        rows = rows[better]
        counts[rows], experts[rows], carried[rows] = moved_counts, moved, moved_loads
        rows = rows[carried[rows].max(axis=1) > bound[rows] * WORTH_MOVING]
    return experts, work


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
