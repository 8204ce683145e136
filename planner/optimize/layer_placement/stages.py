"""Pipelines of aligned stages, links aside: which stages of equal layers, and how many machines of each type in each.

Sets
    p in patterns: a stage of k[p] layers with n[p,g] machines of type g that all hold these k layers and together carry
    at least t tokens/s; no machine of it can be spared
Variables
    x[p] integer >= 0   stages of pattern p
Laws
    sum_p k[p] x[p] = L;  sum_p n[p,g] x[p] <= N[g] for every type g
Objective
    at a given t, any solution; the largest such t is sought by bisection

Patterns are ranked by what their layers cost at the worths that prove the bound (see `bound`), and only the cheapest
are kept: those are the ones of which good solutions consist.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pulp

from planner.optimize.layer_placement.instance import LayerInstance
from planner.optimize.solve import minimise
from specs.errors import CapstanError

MOST_PATTERNS = 500
MOST_NODES = 1_000  # of the tree of one programme
SLOWEST_S = 10.0  # of one programme, which takes tenths: for slow machines
LEAST_TRIES = 12  # before the deadline counts: enough to bisect to the answer where programmes are tiny
PRECISION = 5e-4


@dataclass(frozen=True)
class Stage:
    """`machines` by type, all of which hold the same `layers` layers."""

    layers: int
    machines: tuple[tuple[str, int], ...]


def stage_speed(instance: LayerInstance, stage: Stage) -> float:
    """Tokens/s of a stage whose links do not bind."""
    return sum(count * instance.tokens_per_s[kind].get(stage.layers, 0.0) for kind, count in stage.machines)


def plan_stages(
    instance: LayerInstance, t: float, worth: dict[str, float], time_limit_s: float
) -> tuple[Stage, ...] | None:
    """Stages that carry t tokens/s each; None where none were found in time among the cheapest patterns."""
    patterns = cheapest_patterns(instance, t, worth)
    problem = pulp.LpProblem("stages", pulp.LpMinimize)
    taken = [
        pulp.LpVariable(f"x_{index}", lowBound=0, upBound=instance.layers // pattern.layers, cat=pulp.LpInteger)
        for index, pattern in enumerate(patterns)
    ]
    covered = pulp.lpSum(pattern.layers * x for pattern, x in zip(patterns, taken, strict=True))
    problem += -covered
    problem += covered <= instance.layers
    for kind, count in instance.counts.items():
        used = [dict(pattern.machines).get(kind, 0) * x for pattern, x in zip(patterns, taken, strict=True)]
        problem += pulp.lpSum(used) <= count
    try:
        _, status, _ = minimise(problem, time_limit_s, MOST_NODES)
    except CapstanError:  # nothing found in time
        return None
    stages = tuple(pattern for pattern, x in zip(patterns, taken, strict=True) for _ in range(round(x.varValue or 0.0)))
    if status == "infeasible" or sum(stage.layers for stage in stages) != instance.layers:
        return None
    return stages


def cheapest_patterns(instance: LayerInstance, t: float, worth: dict[str, float]) -> list[Stage]:
    """The patterns whose layers cost least, cheapest first."""
    most = max(k for speeds in instance.tokens_per_s.values() for k in speeds)
    found = [
        pattern for layers in range(1, min(most, instance.layers) + 1) for pattern in patterns(instance, layers, t)
    ]
    return sorted(found, key=lambda pattern: (layer_price(pattern, worth), pattern.layers, pattern.machines))[
        :MOST_PATTERNS
    ]


def layer_price(stage: Stage, worth: dict[str, float]) -> float:
    """Worth of the machines that a layer of the stage takes."""
    return sum(worth[kind] * count for kind, count in stage.machines) / stage.layers


def patterns(instance: LayerInstance, layers: int, t: float) -> Iterator[Stage]:
    """Every least set of machines that carries t with so many layers each; fast machines are taken first."""
    kinds = [
        (kind, speed, count)
        for kind, count in instance.counts.items()
        if (speed := instance.tokens_per_s[kind].get(layers, 0.0)) > 0
    ]
    kinds.sort(key=lambda entry: -entry[1])

    def extend(index: int, need: float, taken: tuple[tuple[str, int], ...]) -> Iterator[Stage]:
        if need <= t * 1e-12:
            yield Stage(layers, taken)
            return
        if index == len(kinds):
            return
        kind, speed, count = kinds[index]
        for number in range(min(count, -int(-need * (1 - 1e-12) // speed)), -1, -1):
            yield from extend(index + 1, need - number * speed, (*taken, (kind, number)) if number else taken)

    yield from extend(0, t, ())


def best_stages(
    instance: LayerInstance, worth: dict[str, float], bound: float, deadline: float
) -> tuple[float, tuple[Stage, ...]]:
    """(tokens/s, stages) of the best pipeline found; (0, ()) if there is none.

    Downwards from the bound in doubling steps until there is a pipeline, then bisection above it. After a few tries no
    other one begins behind `deadline` (of `time.monotonic`).
    """
    best: tuple[float, tuple[Stage, ...]] = (0.0, ())
    step, tries = PRECISION, 0
    high, t = bound, bound * (1 - step)
    while high > best[0] * (1 + PRECISION) and t > 0 and (tries < LEAST_TRIES or time.monotonic() < deadline):
        stages = plan_stages(instance, t, worth, SLOWEST_S)
        tries += 1
        if stages is not None:
            best = (min(stage_speed(instance, stage) for stage in stages), stages)
        else:
            high, step = t, 2 * step
        t = (best[0] + high) / 2 if best[1] else bound * (1 - step)
    return best
