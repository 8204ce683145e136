"""A sharper lower bound where devices have two slots: prices from a linear programme over pairings.

For one layer and a limit, sizes relative to it
    x[e,r] >= 0   share of expert e's replicas chosen to be r
    sum_r x[e,r] = 1
    for every size v > 1/2: the replicas of at least v are no more than those of at most 1 - v, their only companions
    minimise sum over (e, r) of r x[e,r]: more than there are means that no placement keeps the limit

Its dual prices of the second law are prices of replicas by size, such as `expert_placement_bound` uses: two replicas
that fit on a device together cost no more than nothing. They are judged by themselves, for every layer and every limit,
so the bound does not rest on the solver, and a few programmes serve many layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pulp

from planner.optimize.expert_placement_bound import sharpen
from planner.optimize.solve import minimise

MOST_PROGRAMMES = 4
OPEN = 1.01  # times the bound: layers for which prices are sought
AIMS = (0.004, 0.015)  # gaps to the value that are tried for a refutation
THRESHOLDS = 40
REPLICAS_OFFERED = 4


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


def sharpen_pairs(loads: np.ndarray, value: np.ndarray, bound: np.ndarray, replicas: int) -> np.ndarray:
    """[rows]: bounds raised by the prices of at most MOST_PROGRAMMES programmes, the widest gaps first."""
    tried: set[int] = set()
    for _ in range(MOST_PROGRAMMES):
        gaps = value / np.maximum(bound, 1e-300)
        gaps[list(tried)] = 1.0
        row = int(gaps.argmax())
        if gaps[row] < OPEN:
            break
        tried.add(row)
        for aim in AIMS:
            prices = pair_prices(loads[row] / (value[row] / (1 + aim)), replicas)

            def refuted(rows: np.ndarray, limit: np.ndarray, prices: PairPrices = prices) -> np.ndarray:
                return no_pairing(loads[rows], limit, replicas, prices)

            raised = sharpen(bound, value, refuted)
            if raised[row] > bound[row]:
                bound = raised
                break
    return bound


def no_pairing(loads: np.ndarray, limit: np.ndarray, replicas: int, prices: PairPrices) -> np.ndarray:
    """[rows] of bool: whether the prices prove that no placement with two slots a device keeps the limit."""
    sizes = loads / limit[:, None] * (1 - 1e-12)
    cheapest = np.full(sizes.shape, np.inf)
    for count in range(1, replicas - loads.shape[1] + 2):
        size = sizes / count
        cost = np.where(size <= 1, count * (1 + prices.of(size)), np.inf)
        cheapest = np.minimum(cheapest, cost)
    return np.asarray(cheapest.sum(axis=1) > replicas * (1 + 1e-9))


def pair_prices(sizes: np.ndarray, replicas: int) -> PairPrices:
    """Dual prices of the programme for one layer; `sizes` are loads relative to the limit."""
    offered = [
        (expert, count, size / count)
        for expert, size in enumerate(sizes)
        for least in [max(1, int(np.ceil(size - 1e-12)))]
        for count in range(least, least + REPLICAS_OFFERED)
    ]
    large = sorted({size for _, _, size in offered if size > 0.5})
    chosen = sorted({large[round(at)] for at in np.linspace(0, len(large) - 1, THRESHOLDS)}) if large else []
    problem = pulp.LpProblem("pairs", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{index}", lowBound=0) for index in range(len(offered))]
    problem += pulp.lpSum(count * variable for (_, count, _), variable in zip(offered, x, strict=True))
    of_expert: dict[int, list[object]] = {}
    for (expert, _, _), variable in zip(offered, x, strict=True):
        of_expert.setdefault(expert, []).append(variable)
    for variables in of_expert.values():
        problem += pulp.lpSum(variables) == 1
    for index, threshold in enumerate(chosen):
        terms = [
            (variable, float(count * (int(size >= threshold) - int(size <= 1 - threshold))))
            for (_, count, size), variable in zip(offered, x, strict=True)
        ]
        problem += pulp.LpAffineExpression([term for term in terms if term[1]]) <= 0, f"pairs_{index}"
    minimise(problem, 5.0)
    prices = [max(0.0, -float(problem.constraints[f"pairs_{index}"].pi or 0.0)) for index in range(len(chosen))]
    return PairPrices(np.array(chosen), np.array(prices))
