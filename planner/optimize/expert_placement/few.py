"""Few experts: every choice of replicas, and of each every packing, searched until nothing better can exist.

A layer's placement below a limit needs at least ceil(load / limit) replicas of each expert; where the ways to hand out
the others are few, all are listed, with the most that the pigeonhole principle says of their sizes. What is left is
packed by branch and bound, a device at a time, many partial packings at once as rows of arrays: the largest replica
that waits takes companions whose sum keeps the limit, and leaves no more than the limit for each device after it. A
search that ends has proved that the best placement met is optimal; one that runs out of work has only found it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

MOST_REPLICAS = 32  # above it nothing is proven in reasonable work
MOST_WAYS = 100_000  # to choose the numbers of replicas
MOST_COMPANIONS = 6_000  # ways to choose what lies beside one replica
NEIGHBOURS = 2_000  # of the known numbers of replicas, looked at where choices are many
SHARES = (1 / 64, 1 / 8, 1)  # of what lies between bound and value: limits tried
CHUNK = 400_000  # partial packings times companions that are looked at together
BETTER = 1 - 1e-9  # times a value: below it one is better, which rounding alone is not


@dataclass
class Work:
    """Replicas of ways, and partial packings times companions, that may still be looked at."""

    left: int

    def take(self, amount: int) -> bool:
        self.left -= amount
        return self.left >= 0


@dataclass(frozen=True)
class Settled:
    """One layer: its best load of the busiest device, the experts by device and slot (None: as before), its bound."""

    value: float
    experts: np.ndarray | None
    bound: float


def settle(load: np.ndarray, counts: np.ndarray, devices: int, value: float, bound: float, work: Work) -> Settled:
    """The optimum between `bound` and `value`, as far as `work` goes; `counts` are the replicas of the known placement.

    Limits rise from the bound: close to it few partial packings are left, so one that is searched to its end costs
    little, and raises the bound where nothing was found. Where choices are many, those near `counts` are searched.
    """
    replicas = int(counts.sum())
    experts = None
    if math.comb(replicas - 1, replicas // devices - 1) > MOST_COMPANIONS:
        return Settled(value, None, bound)
    for share in SHARES:
        if value <= bound / BETTER or work.left <= 0:
            break
        limit = bound + share * (value - bound)
        ways = ways_below(load, replicas, limit)
        every = ways is not None
        own = Work(work.left if share == 1 else work.left // 3)
        search = _Search(devices, replicas // devices, limit, own)
        spent = own.left
        exhausted = search.run(load, ways if ways is not None else neighbours(counts, load, limit))
        work.take(spent - max(own.left, 0))
        if search.best is not None:
            value, experts = search.value, search.best
            counts = np.bincount(search.best.ravel(), minlength=len(load))
        if exhausted and every:
            bound = max(bound, search.value)
    return Settled(value, experts, min(bound, value))


def neighbours(counts: np.ndarray, load: np.ndarray, limit: float) -> np.ndarray:
    """[ways, experts]: numbers of replicas that one or two moves of a replica make of `counts`, within the limit."""
    draw = np.random.default_rng(0)
    takers, donors = draw.integers(len(counts), size=(2, NEIGHBOURS, 2))
    ways = np.repeat(counts[None], NEIGHBOURS, axis=0)
    row = np.arange(NEIGHBOURS)
    for move in range(2):
        ways[row, takers[:, move]] += 1
        ways[row, donors[:, move]] -= 1
    ways = np.unique(np.vstack([counts, ways]), axis=0)
    ways = ways[(ways >= 1).all(axis=1)]
    return np.asarray(ways[(load / ways <= limit).all(axis=1)])


def ways_below(load: np.ndarray, replicas: int, limit: float) -> np.ndarray | None:
    """[ways, experts]: all numbers of replicas of which none is larger than `limit`; None where there are many.

    Of neighbouring experts with equal loads the first has no fewer replicas.
    """
    least = np.maximum(1, np.ceil(load / limit * (1 - 1e-12))).astype(np.int64)
    spare = replicas - int(least.sum())
    if spare < 0:
        return np.empty((0, len(load)), dtype=np.int64)
    if math.comb(spare + len(load) - 1, spare) > MOST_WAYS:
        return None
    ways = least + _shares(spare, len(load))
    equal = load[1:] == load[:-1]
    return np.asarray(ways[(ways[:, 1:] <= ways[:, :-1])[:, equal].all(axis=1)])


@cache
def _shares(spare: int, experts: int) -> np.ndarray:
    """[ways, experts]: all ways to share out so many further replicas."""
    if experts == 1:
        return np.array([[spare]])
    bars = np.array(list(itertools.combinations(range(spare + experts - 1), experts - 1)), dtype=np.int64)
    return np.diff(bars, axis=1, prepend=-1, append=spare + experts - 1) - 1


def crowded(sizes: np.ndarray, devices: int) -> np.ndarray:
    """[ways]: what some device carries at the least, of sizes [ways, replicas] that descend.

    Of the j devices + 1 largest replicas, some device holds j + 1; the others on it are at least the smallest of all.
    """
    replicas = sizes.shape[1]
    slots = replicas // devices
    least = sizes.sum(axis=1) / devices
    tail = np.cumsum(sizes[:, ::-1], axis=1)
    for j in range(slots):
        together = sizes[:, j * devices - j : j * devices + 1].sum(axis=1)
        others = tail[:, slots - j - 2] if slots - j - 2 >= 0 else 0.0
        least = np.maximum(least, together + others)
    return np.asarray(least)


@cache
def _companions(waiting: int, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the places of those waiting beside the first: (chosen, left, skips) of all ways to fill a device with it.

    `skips`, as `chosen` [ways, slots - 1]: the place before the chosen one is free, so that of equal replicas only the
    first need be chosen.
    """
    chosen = np.array(list(itertools.combinations(range(1, waiting), slots - 1)), dtype=np.int64)
    chosen = chosen.reshape(-1, slots - 1)
    free = np.ones((len(chosen), waiting), dtype=bool)
    free[:, 0] = False
    np.put_along_axis(free, chosen, False, axis=1)
    left = np.nonzero(free)[1].reshape(len(chosen), waiting - slots)
    return chosen, left, np.take_along_axis(free, chosen - 1, axis=1)


class _Search:
    """Branch and bound over partial packings; `value` falls as better placements are met."""

    def __init__(self, devices: int, slots: int, value: float, work: Work) -> None:
        self.devices, self.slots, self.work = devices, slots, work
        self.value = value
        self.best: np.ndarray | None = None

    def run(self, load: np.ndarray, ways: np.ndarray) -> bool:
        """Whether every way was searched to its end."""
        if not self.work.take(len(ways) * self.devices * self.slots):
            return False
        experts = np.tile(np.arange(len(load)), len(ways))
        of = np.repeat(experts, ways.ravel()).reshape(len(ways), -1)
        each = load / ways
        size = np.take_along_axis(each, of, axis=1)
        order = np.argsort(-size, axis=1, kind="stable")
        of, size = np.take_along_axis(of, order, axis=1), np.take_along_axis(size, order, axis=1)
        least = crowded(size, self.devices)
        rank = np.argsort(least, kind="stable")
        rank = rank[least[rank] < self.value * BETTER]
        placed = np.empty((len(rank), 0), dtype=np.int64)
        return self._extend(placed, of[rank], size[rank], np.zeros(len(rank)))

    def _extend(self, placed: np.ndarray, of: np.ndarray, size: np.ndarray, most: np.ndarray) -> bool:
        """Fill one device more of each partial packing, and then the others of what comes of it."""
        waiting = of.shape[1]
        if not len(of):
            return True
        if waiting == self.slots:
            self._finish(placed, of, size, most)
            return True
        step = max(1, CHUNK // len(_companions(waiting, self.slots)[0]))
        for start in range(0, len(of), step):
            part = slice(start, start + step)
            if not self._extend_part(placed[part], of[part], size[part], most[part]):
                return False
        return True

    def _extend_part(self, placed: np.ndarray, of: np.ndarray, size: np.ndarray, most: np.ndarray) -> bool:
        waiting = of.shape[1]
        chosen, left, skips = _companions(waiting, self.slots)
        if not self.work.take(len(of) * len(chosen)):
            return False
        limit = self.value * BETTER
        total = size.sum(axis=1)
        carried = np.repeat(size[:, :1], len(chosen), axis=1)
        same = np.zeros(of.shape, dtype=bool)
        same[:, 1:] = size[:, 1:] == size[:, :-1]
        again = np.zeros(carried.shape, dtype=bool)
        for place in range(self.slots - 1):
            carried += size[:, chosen[:, place]]
            again |= same[:, chosen[:, place]] & skips[:, place]
        rest = total - (waiting // self.slots - 1) * limit
        row, way = np.nonzero((carried <= limit) & (carried >= rest[:, None] * (1 - 1e-12)) & ~again)
        carried = carried[row, way]
        order = np.argsort(-carried, kind="stable")
        row, way, carried = row[order], way[order], carried[order]
        device = np.hstack([of[row, :1], of[row[:, None], chosen[way]]])
        return self._extend(
            np.hstack([placed[row], device]),
            of[row[:, None], left[way]],
            size[row[:, None], left[way]],
            np.maximum(most[row], carried),
        )

    def _finish(self, placed: np.ndarray, of: np.ndarray, size: np.ndarray, most: np.ndarray) -> None:
        most = np.maximum(most, size.sum(axis=1))
        best = int(most.argmin())
        if most[best] < self.value * BETTER:
            self.value = float(most[best])
            self.best = np.hstack([placed[best], of[best]]).reshape(self.devices, self.slots)
