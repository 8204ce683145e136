"""Step prices of replicas by size, from a linear programme: what no placement can keep, and better numbers of replicas.

For one layer and a limit, sizes relative to it; a step function p of the size has one price p[i] from starts[i] on
    u[e]            what expert e costs at the least;  e may have r replicas of load[e] / r, each at 1 + p
    p[i] in [-1, slots - 1], not falling
    u[e] <= r (1 + p[i])            for every number r of replicas that is offered, of sizes that fall into step i
    sum of p over a device <= 0     for every choice of as many steps as slots whose starts fit into the limit
    maximise sum_e u[e]

In a placement that keeps the limit every device's prices sum to at most nothing, so all replicas, each counted as
1 + price, sum to at most as many as there are: where the experts cost more, no placement keeps the limit. Prices are
judged by themselves, for every layer and every limit, so the bound does not rest on the solver, and a few programmes
serve many layers. The dual values of the third law are shares of an expert's numbers of replicas; few are broken, so
rounding them gives numbers of replicas that nearly keep the limit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

STEPS = {2: (200,), 3: (25, 40), 4: (16, 24), 5: (12, 16)}  # by slots, tried in turn; with more the mean load is close
SMALL = 4  # lowest steps into which every expert is offered the numbers of replicas that reach them
KEY = 1 << 32  # above any number of replicas
FULL = 1 + 1e-12  # the limit, rounded to the safe side
MOST_ROUNDS = 5  # of numbers of replicas that were not offered
OFFERED = 4  # numbers of replicas from the least on
FACTORS_OFFERED = (2, 4)  # of the least number; what turns out cheaper is offered later
USED = 1e-6  # share of a number of replicas above which it is used
# presolve takes longer than it spares: 20 ms with it and 14 without, 256 experts in two slots a device
OPTIONS = {"output_flag": False, "threads": 1, "presolve": "off", "simplex_iteration_limit": 20_000}


@dataclass(frozen=True)
class StepPrices:
    """A replica of size s, relative to the limit, costs the price of the last of `starts` that is not above s."""

    starts: np.ndarray  # ascending from 0
    prices: np.ndarray  # not falling; as many as a device has slots, of sizes that fit, sum to at most 0

    def fewest(self, sizes: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(number, cost) of the fewest replicas of experts of such sizes that are small enough for a step, by step.

        A replica counts as 1 + price. More than `most` cost infinitely much.
        """
        least = np.ceil(sizes * (1 - 1e-9)).clip(1)
        for index, price in enumerate(self.prices):
            count = least
            if index + 1 < len(self.starts):
                count = np.maximum(least, np.floor(sizes / self.starts[index + 1] * (1 - 1e-12)) + 1)
            yield count, np.where(count <= most, count * (1 + price), np.inf)

    def least_cost(self, sizes: np.ndarray, most: int) -> np.ndarray:
        """What up to `most` replicas of experts of such sizes cost at the least."""
        cost = np.full(sizes.shape, np.inf)
        for _, its in self.fewest(sizes, most):
            np.minimum(cost, its, out=cost)
        return cost


def unaffordable(loads: np.ndarray, limit: np.ndarray, replicas: int, prices: StepPrices) -> np.ndarray:
    """[rows] of bool: whether the prices prove that no placement keeps the limit."""
    sizes = loads / np.maximum(limit[:, None], 1e-300)
    return np.asarray(prices.least_cost(sizes, replicas - loads.shape[1] + 1).sum(axis=1) > replicas * (1 + 1e-9))


@dataclass(frozen=True)
class Priced:
    """Prices; numbers of replicas, None where experts need more than there are; rows of all programmes solved."""

    prices: StepPrices
    counts: np.ndarray | None
    rows: int


def price_steps(sizes: np.ndarray, replicas: int, slots: int, steps: int) -> Priced | None:
    """The dearest prices of at most so many steps for sizes relative to the limit; None where no solver works.

    Numbers of replicas that turn out cheaper than what was offered are offered, and the programme is solved again,
    until the experts can afford the limit or no number of replicas makes them.
    """
    offer, most, rows = _Offer.of(sizes, replicas), replicas - len(sizes) + 1, 0
    starts = _spread(offer.size, slots, steps)
    offer = offer.extended(sizes, [np.floor(sizes / start * (1 - 1e-12)) + 1 for start in starts[1 : SMALL + 1]], most)
    found: _Answer | None = None
    for _ in range(MOST_ROUNDS if importlib.util.find_spec("highspy") else 0):
        answer = _solve(offer, starts, slots)
        rows += len(offer.size)
        found = answer or found
        if answer is None or answer.costs.sum() <= replicas:
            break
        if answer.prices.least_cost(sizes, most).sum() > replicas:
            break
        cheaper = [
            np.where(cost < answer.costs * (1 - 1e-6), count, np.inf)
            for count, cost in answer.prices.fewest(sizes, most)
        ]
        offer = offer.extended(sizes, cheaper, most)
    if found is None:
        return None
    return Priced(found.prices, _rounded(sizes, found.offer, found.shares, replicas), rows)


@dataclass(frozen=True)
class _Offer:
    """Numbers of replicas that are offered to each expert, and the size of each replica then."""

    expert: np.ndarray
    count: np.ndarray
    size: np.ndarray

    @staticmethod
    def of(sizes: np.ndarray, replicas: int) -> _Offer:
        least = np.ceil(sizes * (1 - 1e-12)).clip(1).astype(np.int64)
        most = np.maximum(least, replicas - len(sizes) + 1)
        ways = np.hstack([least[:, None] + np.arange(OFFERED), least[:, None] * np.array(FACTORS_OFFERED)])
        ways = np.sort(np.minimum(ways, most[:, None]), axis=1)
        new = np.hstack([np.full((len(ways), 1), True), ways[:, 1:] > ways[:, :-1]])
        expert, column = np.nonzero(new)
        count = ways[expert, column]
        return _Offer(expert, count, sizes[expert] / count)

    def extended(self, sizes: np.ndarray, numbers: list[np.ndarray], most: int) -> _Offer:
        """With further numbers of replicas for the experts that may have as many."""
        keys = [self.expert * KEY + self.count]
        for number in numbers:
            also = np.flatnonzero(number <= most)
            keys.append(also * KEY + number[also].astype(np.int64))
        expert, count = np.divmod(np.unique(np.concatenate(keys)), KEY)
        return _Offer(expert, count, sizes[expert] / count)


@dataclass(frozen=True)
class _Answer:
    """`costs` of the experts at the least; `shares` of each number offered."""

    offer: _Offer
    prices: StepPrices
    costs: np.ndarray
    shares: np.ndarray


def _spread(size: np.ndarray, slots: int, most: int) -> np.ndarray:
    """Starts of steps: 0, sizes spread over their order, and the sizes from which on a companion no longer fits."""
    size = np.unique(size[size > 0])
    chosen = _thinned(size, most // 2)
    room = np.concatenate([way for beside in range(1, slots) for way in ((1 - chosen) / beside, 1 - beside * chosen)])
    above = np.searchsorted(size, room[room > 0], side="right")
    chosen = np.union1d(chosen, _thinned(np.unique(size[above[above < len(size)]]), most - len(chosen)))
    return np.concatenate([[0.0], chosen * (1 - 1e-9)])


def _thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of ascending values, spread over their order."""
    return (
        values[np.unique(np.linspace(0, len(values) - 1, max(0, most)).round().astype(int))] if len(values) else values
    )


def _solve(offer: _Offer, starts: np.ndarray, slots: int) -> _Answer | None:
    """The programme over these steps; None where the solver does not end with an optimum."""
    experts, steps = int(offer.expert[-1]) + 1, len(starts)
    step = np.searchsorted(starts, offer.size, side="right") - 1
    first = np.unique(offer.expert * steps + step, return_index=True)[1]  # of one step, the fewest replicas cost least
    expert, count, step = offer.expert[first], offer.count[first], step[first]
    together = fullest(starts, slots)
    rows = np.vstack(
        [
            np.column_stack([np.arange(len(first)), expert, np.ones(len(first))]),
            np.column_stack([np.arange(len(first)), experts + step, -count]),
            np.column_stack([len(first) + np.arange(steps - 1), experts + np.arange(steps - 1), np.ones(steps - 1)]),
            np.column_stack([len(first) + np.arange(steps - 1), experts + np.arange(1, steps), -np.ones(steps - 1)]),
            _counted(together, len(first) + steps - 1, experts),
        ]
    )
    most = np.concatenate([count, np.zeros(steps - 1 + len(together))])
    cost = np.concatenate([-np.ones(experts), np.zeros(steps)])
    low = np.concatenate([np.zeros(experts), np.full(steps, -1.0)])
    high = np.concatenate([np.full(experts, np.inf), np.full(steps, slots - 1.0)])
    found = _least(cost, low, high, rows, most)
    if found is None:
        return None
    values, duals = found
    prices = np.maximum.accumulate(values[experts:])
    prices -= max(0.0, float(prices[together].sum(axis=1).max())) / slots  # what the solver's tolerance left
    shares = np.zeros(len(offer.expert))
    shares[first] = np.abs(duals[: len(first)])
    changes = np.concatenate([[True], np.diff(prices) > 1e-12])
    return _Answer(offer, StepPrices(starts[changes], prices[changes]), values[:experts], shares)


def fullest(starts: np.ndarray, slots: int) -> np.ndarray:
    """[ways, slots]: choices of steps, ascending, whose starts fit into 1 and of which the last cannot be higher."""
    chosen = np.arange(len(starts))[:, None]
    for _ in range(slots - 2):
        pairs = [
            np.hstack([chosen[chosen[:, -1] <= step], np.full(((chosen[:, -1] <= step).sum(), 1), step)])
            for step in range(len(starts))
        ]
        chosen = np.vstack(pairs)
        chosen = chosen[starts[chosen].sum(axis=1) + starts[chosen[:, -1]] <= FULL]
    last = np.searchsorted(starts, FULL - starts[chosen].sum(axis=1), side="right") - 1
    fits = last >= chosen[:, -1]
    return np.column_stack([chosen[fits], last[fits]])


def _counted(together: np.ndarray, first_row: int, first_column: int) -> np.ndarray:
    """[entries, 3]: row, column, how often, of choices of steps."""
    row = np.repeat(np.arange(len(together)), together.shape[1])
    entry, count = np.unique(np.column_stack([row, together.ravel()]), axis=0, return_counts=True)
    return np.column_stack([first_row + entry[:, 0], first_column + entry[:, 1], count])


def _least(
    cost: np.ndarray, low: np.ndarray, high: np.ndarray, entries: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """(values, duals of the rows) of a linear programme `entries` [row, column, value] <= `most`, None without one."""
    import highspy

    model: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in OPTIONS.items():
        model.setOptionValue(option, value)
    order = np.lexsort((entries[:, 1], entries[:, 0]))
    row, column = entries[order, 0].astype(np.int64), entries[order, 1].astype(np.int32)
    begin = np.searchsorted(row, np.arange(len(most))).astype(np.int32)
    free = np.full(len(most), -highspy.kHighsInf)
    high = np.minimum(high, highspy.kHighsInf)
    model.passModel(
        len(cost),
        len(most),
        len(entries),
        2,
        1,
        0.0,
        cost,
        low,
        high,
        free,
        most.astype(float),
        begin,
        column,
        entries[order, 2],
        np.zeros(len(cost), np.int32),
    )  # 2: by row, 1: minimise
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    solution = model.getSolution()
    return np.array(solution.col_value), np.array(solution.row_dual)


def _rounded(sizes: np.ndarray, offer: _Offer, shares: np.ndarray, replicas: int) -> np.ndarray | None:
    """Each expert's likeliest number of replicas; broken shares give way while there are too many, and grow after."""
    found = np.ones(len(sizes), dtype=np.int64)
    order = np.argsort(shares, kind="stable")
    found[offer.expert[order]] = offer.count[order]  # the last one written has the largest share
    fewest = np.full(len(sizes), replicas)
    np.minimum.at(fewest, offer.expert[shares > USED], offer.count[shares > USED])
    for expert in np.flatnonzero(found > fewest):
        if found.sum() > replicas:
            found[expert] = fewest[expert]
    if found.sum() > replicas:
        return None
    while found.sum() < replicas:
        found[np.argmax(sizes / found)] += 1
    return found
