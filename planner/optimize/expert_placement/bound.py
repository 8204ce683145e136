"""Lower bounds on the busiest device's load, for many layers at once (rows): the mean, apportionment, weak duality."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

CLOSE_ENOUGH = 1.001  # times the bound: no further search
GAPS = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.007,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
)  # between value and bound, tried for proofs
REFINEMENTS = 3  # bisections between the last limit that is refuted and the next one that is not
WORTH_REFINING = 1.003  # times the bound
QUANTILES = (0.0, 0.02, 0.06, 0.12, 0.25, 0.4, 0.55, 0.7)  # of the loads: where prices begin and end to rise
WEIGHTS = (0.15, 0.3, 0.45, 0.6, 0.8)  # of prices beside the number of replicas
REPLICAS_TRIED = 4

Refuted = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (rows, limits) -> whether a limit is proven too low


def apportion(loads: np.ndarray, replicas: int) -> np.ndarray:
    """[rows, experts]: the numbers of replicas with the least maximum of load per replica (exactly)."""
    counts = np.ones(loads.shape)
    rows = np.arange(len(loads))
    for _ in range(replicas - loads.shape[1]):
        counts[rows, np.argmax(loads / counts, axis=1)] += 1
    return np.asarray(counts, dtype=np.int64)


def plain_bound(loads: np.ndarray, replicas: int, devices: int) -> np.ndarray:
    """[rows]: the mean load, and where a device holds one replica the exact optimum, which `apportion` finds."""
    mean = loads.sum(axis=1) / devices
    if replicas > devices:
        return np.asarray(mean)
    return np.asarray(np.maximum(mean, (loads / apportion(loads, replicas)).max(axis=1)))


def sharpen(bound: np.ndarray, value: np.ndarray, refuted: Refuted) -> np.ndarray:
    """[rows]: bounds raised towards `value`: the highest limit of a grid that falls, then bisection above it."""
    best = bound.copy()
    shares = 1 / (1 + np.array((0.0, *GAPS)))
    low, high = np.ones(len(bound), dtype=np.int64), np.full(len(bound), len(shares))  # shares[low:] may be refuted
    while True:
        rows = np.flatnonzero((low < high) & (value > best * CLOSE_ENOUGH))
        if not len(rows):
            break
        middle = (low[rows] + high[rows]) // 2
        limit = value[rows] * shares[middle]
        fell = _fall(refuted, rows, limit, best)
        known = fell | (limit <= best[rows])
        best[rows[fell]] = limit[fell]
        high[rows[known]], low[rows[~known]] = middle[known], middle[~known] + 1
    open_above = value * shares[np.minimum(low, len(shares)) - 1]  # the lowest limit that was not refuted
    for _ in range(REFINEMENTS):
        rows = np.flatnonzero(open_above > best * WORTH_REFINING)
        limit = (open_above[rows] + best[rows]) / 2
        fell = _fall(refuted, rows, limit, best)
        best[rows[fell]], open_above[rows[~fell]] = limit[fell], limit[~fell]
    return best


def _fall(refuted: Refuted, rows: np.ndarray, limit: np.ndarray, best: np.ndarray) -> np.ndarray:
    """[rows] of bool: whether a limit above the best bound is refuted."""
    fell = np.asarray(limit > best[rows])
    if fell.any():
        fell[fell] = refuted(rows[fell], limit[fell])
    return fell


def no_placement(loads: np.ndarray, limit: np.ndarray, replicas: int, devices: int) -> np.ndarray:
    """[rows] of bool: whether weak duality proves that no placement keeps every device at or below `limit`.

    Give every replica a price by its size, such that the replicas that fit on one device together never cost more than
    nothing. Then the prices of any placement sum to at most nothing, so its replicas, each counted as 1 + price, sum to
    at most the replicas there are. Where even the cheapest number of replicas of each expert sums to more, the limit is
    too low. Numbers of replicas that are not tried count as many and as cheap as can be.
    """
    slots = replicas // devices
    sizes = loads / np.maximum(limit[:, None], 1e-300) * (1 - 1e-12)  # of the limit; rounded to the safe side
    least = np.ceil(sizes).clip(1)
    found = np.asarray(least.sum(axis=1) > replicas) | (loads.sum(axis=1) > limit * devices * (1 + 1e-12))
    quantiles = np.sort(sizes, axis=1)[:, [int(share * (loads.shape[1] - 1)) for share in QUANTILES]]
    for first, second in itertools.combinations_with_replacement(range(len(QUANTILES)), 2) if slots > 1 else ():
        rows = np.flatnonzero(~found & (quantiles[:, second] <= 0.5))
        start, end = quantiles[rows, first, None] * (1 - 1e-9), quantiles[rows, second, None]
        size, count = sizes[rows], least[rows]
        tried = [(count + more, _price(size / (count + more), start, end, slots)) for more in range(REPLICAS_TRIED)]
        for weight in WEIGHTS if len(rows) else ():
            cost = (count + REPLICAS_TRIED) * (1 - weight)
            for number, price in tried:
                cost = np.minimum(cost, number * (1 + weight * price))
            found[rows] |= cost.sum(axis=1) > replicas * (1 + 1e-9)
    return np.asarray(found)


def _price(size: np.ndarray, start: np.ndarray, end: np.ndarray, slots: int) -> np.ndarray:
    """Prices for which no device at the limit, 1, costs more than nothing: small replicas are paid for, big ones pay.

    Up to `start` a replica costs -1, from there it rises to 0 at `end` <= 1/2. Above 1/2, where a device holds only
    one, it costs what its slots - 1 companions get at the least with the room that it leaves: as many as possible have
    size `end`, one more has what is left, and the others nothing.
    """

    def rise(room: np.ndarray) -> np.ndarray:
        return np.asarray(((room - start) / np.maximum(end - start, 1e-12)).clip(0, 1))

    room = (1 - size).clip(0)
    whole = np.floor(room / np.maximum(end, 1e-12) * (1 + 1e-12))
    companions = np.minimum(whole + rise(room - whole * end), slots - 1)
    return np.asarray(np.where(size > 0.5, slots - 1 - companions, rise(size) - 1))
