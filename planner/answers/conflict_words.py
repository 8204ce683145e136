"""Statements of a spec, and changes to them, in the words in which users write them."""

from __future__ import annotations

import math
from typing import Any

from planner.layout_words import pools_words
from planner.optimize.decision import Decision
from planner.optimize.parts import slot_gpus
from planner.problem import Problem
from specs.deployment import DeploymentSpec, PoolSpec
from specs.plan import Discarded


def demand(spec: DeploymentSpec) -> str:
    """`traffic: chat 20/s, code as recorded`."""
    parts = []
    for traffic in spec.traffic:
        source = traffic.trace or traffic.arrivals or traffic.sessions
        rate = None if source is None else source.rate_per_s
        what = " sessions" if traffic.sessions is not None else ""
        parts.append(f"{traffic.name} {rate:g}{what}/s" if rate else f"{traffic.name} as recorded")
    return "traffic: " + ", ".join(parts)


def nearest_miss(problem: Problem, model: str) -> str | None:
    """The configuration of a model that came closest to booting."""
    misses = [item for item in problem.dropped if item.configuration.model == model and item.reason != "pipeline"]
    if not misses:
        return None

    def distance(item: Discarded) -> tuple[bool, float]:
        return item.margin is None, item.margin or 0.0

    best = min(misses, key=distance)
    where = best.configuration
    return (
        f"{pools_words(where)} with TP {where.tensor_parallel}, PP {where.pipeline_parallel}, "
        f"{where.weights_dtype} weights, {where.kv_dtype} KV: {best.detail}"
    )


def stock(pool: PoolSpec) -> str:
    """What a pool holds."""
    return f"{pool.name} with {pool.count} {pool.device}"


def devices(decision: Decision, pool: PoolSpec) -> int:
    """Devices of a pool that a decision takes, whole nodes where they are rented so."""
    if pool.name in decision.nodes:
        return decision.nodes[pool.name] * pool.gpus_per_node
    own = [(item.column.family.gpus_in(pool.name), item.replicas) for item in decision.bought]
    return math.ceil(sum(slot_gpus(gpus, pool.gpus_per_node) * count for gpus, count in own if gpus) - 1e-9)


def rented(decision: Decision, pool: PoolSpec) -> int:
    """Devices of a pool that are paid for."""
    if pool.rent == "node":
        return devices(decision, pool)
    return sum(item.column.family.gpus_in(pool.name) * item.replicas for item in decision.bought)


def most_watts(decision: Decision, problem: Problem) -> float:
    """What the devices at work may draw."""
    watts = {pool.name: pool.most_watts for pool in problem.template.pools}
    return sum(
        item.column.family.gpus_in(name) * item.replicas * most
        for item in decision.bought
        for name, most in watts.items()
    )


def gpus(decision: Decision, model: str) -> int:
    """Devices that a model's replicas work on."""
    return sum(i.column.family.gpus * i.replicas for i in decision.bought if i.column.family.model == model)


def chosen(decision: Decision, model: str, name: str) -> str:
    """What a plan chose where the user pinned the field `name` of `choices`."""
    own = [item for item in decision.bought if item.column.family.model == model]
    if name == "replicas":
        return str(sum(item.replicas for item in own))
    values = []
    for item in own:
        family, variant = item.column.family, item.column.variant
        places: tuple[Any, ...] = (family.layout, variant.limits if variant else None, family.options)
        if name == "pool":
            values += [pool.name for pool in family.pools]
        else:
            values.append(next((getattr(place, name) for place in places if hasattr(place, name)), "auto"))
    return listed(dict.fromkeys(values))


def listed(values: Any) -> str:
    """One value, or several as a YAML list."""
    items = [shown(item) for item in (values if isinstance(values, (list, tuple, dict)) else [values])]
    return items[0] if len(items) == 1 else "[" + ", ".join(items) + "]"


def shown(value: Any) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def digits(seconds: float) -> float:
    """Three digits, as a mend is printed: what is printed is then what was planned."""
    return float(f"{seconds:.3g}")


def two_digits(seconds: float) -> float:
    """Rounded up to two significant digits: a value that a person would write."""
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return math.ceil(seconds / unit - 1e-9) * unit


def seconds_text(seconds: float) -> str:
    """`350ms`, `1.2s`, `1500s`."""
    return f"{digits(seconds * 1000):g}ms" if seconds < 1 else f"{digits(seconds):g}s"
