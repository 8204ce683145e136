"""An upper bound on every placement, links aside: what a layer must cost when machines have prices.

If a placement carries t tokens/s, then the machines that hold any one layer carry t together. Let a machine of type g
be worth w[g], and let it charge each of the k layers that it holds w[g] / k. A layer pays at least

    price(t, w) = min  sum over (g, k) of a[g,k] w[g] / k
                  s.t. sum over (g, k) of a[g,k] tokens_per_s[g][k] >= t,  sum_k a[g,k] <= N[g],  a integer

so L price(t, w) <= sum_g N[g] w[g], for every w >= 0. The largest t that satisfies this is a bound; it is found by
bisection, with the minimum (a small knapsack) solved exactly by branch and bound. The worths that make it small come
from a linear programme over the patterns a seen so far (row generation); they need not be right for the bound to hold.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import pulp

from planner.optimize.layer_placement.instance import LayerInstance
from planner.optimize.solve import minimise

BISECTIONS = 40
ROUNDS = 60
PRECISION = 1e-5
NODES = 20_000  # of one branch and bound; then the knapsack's own lower bound counts


@dataclass(frozen=True)
class ThroughputBound:
    """No placement carries more than `tokens_per_s`; `worth` by type proves it."""

    tokens_per_s: float
    worth: dict[str, float]


@dataclass(frozen=True)
class _Item:
    kind: str
    layers: int
    speed: float
    price: float


def throughput_bound(instance: LayerInstance) -> ThroughputBound:
    """The bound at the best worths found; equal worths to begin with."""
    worth = dict.fromkeys(instance.counts, 1.0)
    best = ThroughputBound(_limit(instance, worth), worth)
    patterns: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        for _ in range(ROUNDS):
            price, pattern = _cheapest(instance, worth, best.tokens_per_s * (1 - PRECISION))
            if math.isinf(price) or (patterns and price >= 1 - PRECISION):
                break
            patterns.append(pattern)
            worth = _least_worth(instance, patterns)
        limit = _limit(instance, worth)
        if limit > best.tokens_per_s * (1 - PRECISION):
            break
        best = ThroughputBound(limit, worth)
    return best


def _limit(instance: LayerInstance, worth: dict[str, float]) -> float:
    """The largest t at which the machines' worth still pays for every layer, rounded up by less than 1e-9 of it."""
    total = sum(count * worth[kind] for kind, count in instance.counts.items())
    low, high = 0.0, sum(max(instance.tokens_per_s[kind].values(), default=0.0) for kind in instance.types)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        price, _ = _cheapest(instance, worth, middle)
        low, high = (low, middle) if instance.layers * price > total * (1 + 1e-12) else (middle, high)
    return high


def _least_worth(instance: LayerInstance, patterns: list[dict[str, float]]) -> dict[str, float]:
    """Worths of least total at which every pattern seen costs at least 1."""
    problem = pulp.LpProblem("worth", pulp.LpMinimize)
    worth = {kind: pulp.LpVariable(f"w_{index}", lowBound=0) for index, kind in enumerate(instance.counts)}
    problem += pulp.lpSum(count * worth[kind] for kind, count in instance.counts.items())
    for pattern in patterns:
        problem += pulp.lpSum(share * worth[kind] for kind, share in pattern.items()) >= 1
    minimise(problem, 10.0)
    return {kind: max(0.0, float(variable.varValue or 0.0)) for kind, variable in worth.items()}


def _cheapest(instance: LayerInstance, worth: dict[str, float], t: float) -> tuple[float, dict[str, float]]:
    """(least price of a layer, machines by type that its pattern uses up); the price is infinite where none carries t.

    Best first: items in order of price for each token/s, each taken once more or passed over; what is still needed
    costs at least the current item's rate. A search cut short returns its lowest open bound, which is no more.
    """
    items = _undominated(
        [
            _Item(kind, layers, speed, worth[kind] / layers)
            for kind in instance.counts
            for layers, speed in instance.tokens_per_s[kind].items()
            if speed > 0
        ]
    )
    items.sort(key=lambda item: (item.price / item.speed, -item.speed))
    best: tuple[float, tuple[int, ...]] = (math.inf, ())
    heap: list[tuple[float, float, float, int, tuple[int, ...]]] = [(0.0, 0.0, t, 0, ())]
    popped = 0
    while heap:
        low, price, need, index, taken = heapq.heappop(heap)
        popped += 1
        if low >= best[0] or popped > NODES:
            best = (min(low, best[0]), best[1] or taken)
            break
        item = items[index]
        if sum(items[other].kind == item.kind for other in taken) < instance.counts[item.kind]:
            left = need - item.speed
            if left <= t * 1e-12:
                best = min(best, (price + item.price, (*taken, index)))
            else:
                low = price + item.price + left * item.price / item.speed
                heapq.heappush(heap, (low, price + item.price, left, index, (*taken, index)))
        if index + 1 < len(items):
            following = items[index + 1]
            low = price + need * following.price / following.speed
            heapq.heappush(heap, (low, price, need, index + 1, taken))
    pattern: dict[str, float] = {}
    for index in best[1]:
        pattern[items[index].kind] = pattern.get(items[index].kind, 0.0) + 1 / items[index].layers
    return best[0], pattern


def _undominated(items: list[_Item]) -> list[_Item]:
    """Of each type, the items that none with more layers beats in speed: those cost less for each layer."""
    kept: list[_Item] = []
    for item in sorted(items, key=lambda item: (item.kind, -item.layers)):
        if not any(other.kind == item.kind and other.speed >= item.speed for other in kept):
            kept.append(item)
    return kept
