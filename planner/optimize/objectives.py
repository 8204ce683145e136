"""What is minimised. A quantity that is maximised is minimised as its negative, so that solvers know one sense only.

cost      sum over pools of price x devices rented (whole nodes where they are rented so, devices elsewhere)
gpus      devices rented
energy    watts: idle ones of every device rented, and of each class's demand what the column that takes it draws
carbon    grams an hour of those watts
traffic   the multiple of all traffic that is carried
throughput, goodput   output tokens/s, requests/s: what serving all of a class counts, times the share that is served
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pulp

from planner.optimize.parts import Pool, Programme, Quantity, Variables, devices_in, members

UNITS: dict[Quantity, str] = {
    "cost": "$/h",
    "gpus": "GPUs",
    "energy": "W",
    "carbon": "g CO2/h",
    "throughput": "output tokens/s",
    "goodput": "requests/s",
    "traffic": "times the traffic",
}


def objective(programme: Programme, variables: Variables) -> Any:
    """The expression that is minimised."""
    if programme.quantity == "traffic":
        return -1.0 * variables.multiple
    if programme.maximises:
        return pulp.lpSum(-worth * variables.demand[name] for name, worth in programme.worth.items())
    terms = [term for pool in programme.pools for term in _rented(programme, variables, pool, _weight(programme, pool))]
    if programme.meters:
        terms += [
            programme.per_watt * watts * variables.taken[member.key, name]
            for member in members(programme)
            for name, watts in member.watts
            if (member.key, name) in variables.taken
        ]
    return pulp.lpSum(terms)


def _weight(programme: Programme, pool: Pool) -> float:
    """What one rented device counts."""
    if programme.quantity == "cost":
        return pool.price or 0.0
    return programme.per_watt * pool.idle_watts if programme.meters else 1.0


def _rented(programme: Programme, variables: Variables, pool: Pool, weight: float) -> Iterable[Any]:
    if pool.rent == "node":
        yield weight * pool.node_devices * variables.nodes[pool.name]
        return
    for member in members(programme):
        devices = devices_in(member, pool.name)
        if devices:
            yield weight * devices * variables.replicas[member.key]


def natural(quantity: str, minimised: float) -> float:
    """The value as users state it, of what the solver minimised."""
    return -minimised if quantity in ("throughput", "goodput", "traffic") else minimised


def gap_of(value: float, bound: float, *, maximised: bool) -> float:
    """Share by which the value may still be off: of the value where it is minimised, of the bound where maximised."""
    over, best = (bound - value, bound) if maximised else (value - bound, value)
    return max(0.0, over / best) if best > 0 else 0.0
