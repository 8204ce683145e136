"""How many layers each pipeline stage holds."""

from __future__ import annotations

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
