"""The continuous relaxation of a fleet's programme over its priced columns, and the prices that its rows have there.

A column that is not in the relaxation would improve it exactly if it carries more of its model's demand than its
devices are worth: its share times the price of the demand exceeds the price of what it takes (reduced cost below 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pulp

from planner.optimize.arrays import HighsModel
from planner.optimize.parts import OptimisticFamily, Pool, Programme, scale_of, slot_gpus
from planner.optimize.programme import build
from planner.optimize.solve import RELATIVE_GAP
from specs.errors import CapstanError

DEARER = 10.0  # than all devices together: what it counts where columns do not carry a demand


@dataclass(frozen=True)
class ShadowPrices:
    """What one more of each thing is worth to the relaxation; `value` counts what is not carried as very dear."""

    value: float
    short: bool  # whether some demand is not carried
    demand: dict[str, float]  # by model, of all of its demand
    slots: dict[str, float]  # by pool, of a device and what its size makes unusable
    devices: dict[str, float]  # by pool, of a device at work
    of_model: dict[str, float]  # by model, of a device of its replicas
    replicas: dict[str, float]  # by model, of one replica

    def cost(self, model: str, pool: Pool, gpus: int) -> float:
        """Of one replica, by the prices of all it takes."""
        slots = slot_gpus(gpus, pool.node_devices) * self.slots[pool.name]
        devices = gpus * (self.devices[pool.name] + self.of_model.get(model, 0.0))
        return slots + devices + self.replicas.get(model, 0.0)

    def least_share(self, model: str, pool: Pool, gpus: int) -> float:
        """Of the model's demand, that a replica has to carry to be worth what it takes."""
        price = self.demand[model]
        return self.cost(model, pool, gpus) / price if price > 0 else float("inf")


def shadow_prices(programme: Programme, *, time_limit_s: float = 30.0) -> ShadowPrices:
    """Of the programme over its columns, one class a model. Raises `CapstanError` where HiGHS is missing or stops."""
    if not HighsModel.available():
        raise CapstanError("no solver for large programmes found: install highspy")
    problem, _ = build(programme)
    weights = {pool.name: (pool.price or 0.0) if programme.quantity == "cost" else 1.0 for pool in programme.pools}
    dear = DEARER * sum(weights[pool.name] * pool.devices for pool in programme.pools)
    missing = [pulp.LpVariable(f"missing_{index}", 0, 1) for index in range(len(programme.classes))]
    for index, name in enumerate(programme.classes):
        problem.constraints[f"demand_{index}"].addInPlace(scale_of(programme, name, "unified") * missing[index])
    phantoms = [pulp.LpVariable(f"phantom_{index}", 0) for index in range(len(programme.model_replicas))]
    for index, phantom in enumerate(phantoms):  # of pinned numbers of replicas
        problem.constraints[f"replicas_{index}"].addInPlace(phantom)
    problem.objective += dear * pulp.lpSum([*missing, *phantoms])
    found = HighsModel(problem, RELATIVE_GAP, relaxed=True).run(time_limit_s)
    if found.status != "optimal":
        raise CapstanError(f"HiGHS stopped without a plan ({found.detail}) after {time_limit_s:g} s")

    def price(row: str) -> float:
        """How much the value falls when the right-hand side of a row grows by one; the other way for demands."""
        return -float(problem.constraints[row].pi) if row in problem.constraints else 0.0

    spent = {pool.name: price("budget") * (pool.price or 0.0) for pool in programme.pools}
    by_node = {pool.name: pool.rent == "node" for pool in programme.pools}
    slots = {}
    for index, pool in enumerate(programme.pools):
        if by_node[pool.name]:  # no cheaper than its rent, whatever a pool without a column says
            slots[pool.name] = max(price(f"nodes_{index}"), weights[pool.name] + spent[pool.name])
        else:
            slots[pool.name] = price(f"devices_{index}")
    return ShadowPrices(
        value=found.bound,
        short=any((variable.varValue or 0.0) > 1e-6 for variable in (*missing, *phantoms)),
        demand={
            name: -price(f"demand_{index}") * scale_of(programme, name, "unified")
            for index, name in enumerate(programme.classes)
        },
        slots=slots,
        devices={
            pool.name: price("power") * pool.most_watts
            + (0.0 if by_node[pool.name] else weights[pool.name] + spent[pool.name])
            for pool in programme.pools
        },
        of_model={name: price(f"gpus_{index}") for index, name in enumerate(sorted(programme.model_gpus))},
        replicas={name: price(f"replicas_{index}") for index, name in enumerate(sorted(programme.model_replicas))},
    )


def fewest_devices(families: Iterable[OptimisticFamily], programme: Programme) -> tuple[OptimisticFamily, ...]:
    """Without families that another one of the same model and pool serves every class with fewer devices than.

    Where nothing has to be whole, no optimum misses them. All of them where numbers of replicas are pinned.
    """
    nodes = {pool.name: pool.node_devices for pool in programme.pools}
    kept: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    chosen = []
    for family in sorted(families, key=lambda item: (item.gpus * sum(load for _, load in item.loads), item.key)):
        sizes = slot_gpus(family.gpus, nodes[family.pool]), float(family.gpus)
        taken = tuple(size * load for size in sizes for _, load in family.loads)
        rivals = kept.setdefault((family.model, family.pool), [])
        pinned = family.model in programme.model_replicas
        if pinned or not any(all(a <= b for a, b in zip(rival, taken, strict=True)) for rival in rivals):
            rivals.append(taken)
            chosen.append(family)
    return tuple(sorted(chosen, key=lambda item: item.key))
