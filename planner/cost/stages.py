"""How many layers each pipeline stage holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from specs.architecture.model import Architecture
from specs.errors import InputError


def split_stages(architecture: Architecture, pipeline_parallel: int) -> tuple[int, ...]:
    """Layers per stage, in order, so that the most loaded stage is as light as possible.

    A layer weighs what one token's pass multiplies in it. Where the even split that engines make by default (the
    remainder to the stages before the last) is within 5 % of the best, it is taken, since it needs no extra argument
    when exported. `InputError` where there are more stages than layers.
    """
    weights = [layer.parameters()[1] for layer in architecture.layers]
    if not 1 <= pipeline_parallel <= len(weights):
        raise InputError(
            f"{architecture.name} has {len(weights)} layers, which {pipeline_parallel} stages cannot share",
            field="pipeline_parallel",
            expected=f"between 1 and {len(weights)}",
        )
    even = _even(len(weights), pipeline_parallel)
    low, high = max(weights), sum(weights)
    while low < high:  # the least bound under which a greedy fill needs no more stages than there are
        middle = (low + high) // 2
        if len(_fill(weights, middle, pipeline_parallel)) <= pipeline_parallel:
            high = middle
        else:
            low = middle + 1
    best = _fill(weights, low, pipeline_parallel)
    return even if _heaviest(weights, even) <= 1.05 * _heaviest(weights, best) else best


def split_unlike(costs: Sequence[NDArray[np.float64]]) -> tuple[int, ...] | None:
    """Layers per stage so that the dearest stage is as cheap as can be, and then all together; None where none fits.

    `costs`: by stage, an array [first, end] of what layers first..end - 1 cost there (at least one; infinite where they
    do not fit), for 0 <= first < end <= layers. Dynamic programming over the ends looks at every split: exact.
    """
    dearest = _ends(costs, np.maximum)
    if dearest is None:
        return None
    most = max(cost[first, end] for cost, (first, end) in zip(costs, dearest, strict=True))
    cheap = [np.where(cost <= most, cost, np.inf) for cost in costs]
    ends = _ends(cheap, np.add) or dearest
    return tuple(end - first for first, end in ends)


def _ends(costs: Sequence[NDArray[np.float64]], joined: np.ufunc) -> list[tuple[int, int]] | None:
    """(first, end) of each stage of the split whose costs, `joined` from stage to stage, are the least."""
    count = costs[0].shape[1] - 1
    best = np.where(np.arange(count + 1) == 0, 0.0, np.inf)  # of the stages so far, by where they end
    begins = []
    for cost in costs:
        every = joined(best[:, None], np.where(np.tri(count + 1, dtype=bool), np.inf, cost))
        begins.append(every.argmin(axis=0))
        best = every.min(axis=0)
    if not np.isfinite(best[count]):
        return None
    ends = [count]
    for begin in reversed(begins):
        ends.insert(0, int(begin[ends[0]]))
    return list(pairwise(ends))


def _even(layers: int, stages: int) -> tuple[int, ...]:
    counts = [layers // stages] * stages
    for extra in range(layers % stages):  # backwards from the stage before the last, which also runs the head
        counts[-2 - extra] += 1
    return tuple(counts)


def _fill(weights: list[int], bound: int, stages: int) -> tuple[int, ...]:
    """Fill stages in order up to `bound`, leaving at least one layer for each stage that follows."""
    counts: list[int] = []
    count = load = 0
    for index, weight in enumerate(weights):
        stages_after = stages - len(counts) - 1
        must_close = len(weights) - index <= stages_after
        if count and (load + weight > bound or must_close):
            counts.append(count)
            count = load = 0
        count, load = count + 1, load + weight
    return (*counts, count)


def _heaviest(weights: list[int], counts: tuple[int, ...]) -> int:
    begin, heaviest = 0, 0
    for count in counts:
        heaviest = max(heaviest, sum(weights[begin : begin + count]))
        begin += count
    return heaviest
