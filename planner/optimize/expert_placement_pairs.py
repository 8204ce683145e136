"""Two slots a device: a linear programme over pairings gives better numbers of replicas, and a sharper lower bound.

For one layer and a limit, sizes relative to it
    x[e,r] >= 0   share of expert e's replicas chosen to be r
    sum_r x[e,r] = 1
    for every size v > 1/2: the replicas of at least v are no more than those of at most 1 - v, their only companions
    minimise sum over (e, r) of r x[e,r]: more than there are means that no placement keeps the limit

Few shares come out broken, so that rounding them gives numbers of replicas that nearly keep the limit. The dual prices
of the second law are prices of replicas by size, such as `expert_placement_bound` uses: two replicas that fit on a
device together cost no more than nothing. They are judged by themselves, for every layer and every limit, so the bound
does not rest on the solver, and a few programmes serve many layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pulp

from planner.optimize.expert_placement_bound import paired_loads, sharpen
from planner.optimize.solve import minimise

MOST_PROGRAMMES = 14
MOST_FOR_A_LAYER = 6
OPEN = 1.01  # times the bound: layers that are looked at
THRESHOLDS = 400
REPLICAS_OFFERED = 3  # beyond twice the least number: very large experts need many
FACTORS_OFFERED = (4, 6, 9, 13, 19, 28)  # of the least number: very small replicas are companions to large ones


@dataclass(frozen=True)
class PairPrices:
    """A replica of size s costs the sum of `prices` whose `sizes` it reaches, less that of those it is companion to."""

    sizes: np.ndarray  # ascending, above 1/2
    prices: np.ndarray  # >= 0

    def of(self, size: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(self.prices)])
        reached = total[np.searchsorted(self.sizes, size, side="right")]
        companion = total[np.searchsorted(self.sizes, 1 - size, side="right")]
        return np.asarray(reached - companion)


def close_pairs(
    loads: np.ndarray, value: np.ndarray, bound: np.ndarray, replicas: int
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """(numbers of replicas by row, where better ones were found; bounds), from MOST_PROGRAMMES programmes at most.

    The widest gaps come first. Limits halve what is open: one that is refuted raises the bounds, else its numbers of
    replicas are tried, and lower limits follow.
    """
    value, better = value.copy(), dict[int, np.ndarray]()
    kept = value.copy()  # the lowest limit that was not refuted
    tried = np.zeros(len(loads), dtype=int)
    for _ in range(MOST_PROGRAMMES):
        gaps = np.where(tried < MOST_FOR_A_LAYER, value / np.maximum(bound, 1e-300), 0.0)
        row = int(gaps.argmax())
        if gaps[row] < OPEN:
            break
        tried[row] += 1
        limit = (kept[row] + bound[row]) / 2
        counts, prices = pair_programme(loads[row] / limit, replicas)
        reached = _paired(loads[row], counts) if counts is not None else np.inf
        if counts is not None and reached < value[row] * (1 - 1e-9):
            value[row], better[row] = reached, counts

        def refuted(rows: np.ndarray, limit: np.ndarray, prices: PairPrices = prices) -> np.ndarray:
            return no_pairing(loads[rows], limit, replicas, prices)

        own = np.array([row])
        if refuted(own, np.array([limit]))[0]:
            bound = bound.copy()
            bound[row] = limit
        else:
            kept[row] = limit
        bound = sharpen(bound, value, refuted)
    return better, bound


def _paired(loads: np.ndarray, counts: np.ndarray) -> float:
    """Largest load of a device when the largest replica goes with the smallest, and so on."""
    return float(paired_loads(loads[None], counts[None])[0, 0])


def no_pairing(loads: np.ndarray, limit: np.ndarray, replicas: int, prices: PairPrices) -> np.ndarray:
    """[rows] of bool: whether the prices prove that no placement with two slots a device keeps the limit."""
    sizes = loads / limit[:, None] * (1 - 1e-12)
    cheapest = np.full(sizes.shape, np.inf)
    for count in range(1, replicas - loads.shape[1] + 2):
        size = sizes / count
        cost = np.where(size <= 1, count * (1 + prices.of(size)), np.inf)
        cheapest = np.minimum(cheapest, cost)
    return np.asarray(cheapest.sum(axis=1) > replicas * (1 + 1e-9))


def pair_programme(sizes: np.ndarray, replicas: int) -> tuple[np.ndarray | None, PairPrices]:
    """(rounded numbers of replicas, None where there are too few; dual prices); `sizes` are relative to the limit."""
    least = np.maximum(1, np.ceil(sizes - 1e-12)).astype(int)
    most = replicas - len(sizes) + 1
    offered = [
        (expert, count)
        for expert, low in enumerate(least)
        for count in sorted({*range(low, 2 * low + REPLICAS_OFFERED), *(low * factor for factor in FACTORS_OFFERED)})
        if count <= max(low, most)
    ]
    experts, counts = np.array(offered).T
    each = sizes[experts] / counts
    large = np.unique(each[each > 0.5])
    chosen = large[np.unique(np.linspace(0, len(large) - 1, THRESHOLDS).round().astype(int))] if len(large) else large
    problem = pulp.LpProblem("pairs", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{index}", lowBound=0) for index in range(len(offered))]
    companion = pulp.LpVariable("companion", lowBound=0)  # of no size: keeps prices right for numbers not offered
    problem += pulp.lpSum(int(count) * variable for count, variable in zip(counts, x, strict=True)) + companion
    for own in np.split(np.arange(len(offered)), np.flatnonzero(np.diff(experts)) + 1):
        problem += pulp.lpSum(x[at] for at in own) == 1
    steps: list[list[tuple[Any, float]]] = [[] for _ in chosen]  # what is counted from one threshold to the next
    for sign, size in ((1, each), (-1, 1 - each)):
        for at, index in enumerate(np.searchsorted(chosen, size, side="right") - 1):
            if index >= 0:
                steps[index].append((x[at], float(sign * counts[at])))
    if steps:
        steps[-1].append((companion, -1.0))
    excess = [pulp.LpVariable(f"excess_{index}", upBound=0) for index in range(len(chosen))]
    for index, (variable, step) in enumerate(zip(excess, steps, strict=True)):
        more = [(excess[index + 1], 1.0)] if index + 1 < len(excess) else []
        problem += pulp.LpAffineExpression([*_merged(step), *more]) - variable == 0, f"pairs_{index}"
    minimise(problem, 5.0)
    reached = [abs(float(problem.constraints[f"pairs_{index}"].pi or 0.0)) for index in range(len(chosen))]
    prices = np.diff(np.maximum.accumulate([0.0, *reached]))  # the duals of the steps are sums of prices
    share = np.array([variable.varValue or 0.0 for variable in x])
    return _rounded(sizes, experts, counts, share, replicas), PairPrices(chosen, prices)


def _merged(terms: list[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """Terms of the same variable added up."""
    total: dict[Any, float] = {}
    for variable, factor in terms:
        total[variable] = total.get(variable, 0.0) + factor
    return list(total.items())


def _rounded(
    sizes: np.ndarray, experts: np.ndarray, counts: np.ndarray, share: np.ndarray, replicas: int
) -> np.ndarray | None:
    """Each expert's likeliest number of replicas; broken shares give way while there are too many, and grow after."""
    found = np.ones(len(sizes), dtype=np.int64)
    order = np.argsort(share, kind="stable")
    found[experts[order]] = counts[order]  # the last one written has the largest share
    fewest = np.full(len(sizes), replicas)
    np.minimum.at(fewest, experts[share > 1e-6], counts[share > 1e-6])
    for expert in np.flatnonzero(found > fewest):
        if found.sum() > replicas:
            found[expert] = fewest[expert]
    if found.sum() > replicas:
        return None
    while found.sum() < replicas:
        found[np.argmax(sizes / found)] += 1
    return found
