"""Laws on what a plan is worth and what it can bear, re-checked from the document alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from planner.optimize.laws import check
from specs.plan import Check, Plan, ReplicaGroup

SHARE_TOLERANCE = 2e-6  # to which the programme meets a demand


def cost_adds_up(plan: Plan) -> list[Check]:
    """Devices, dollars and the value of the objective follow from the groups."""
    rented = {pool["name"]: _paid(plan, pool) for pool in plan.spec["hardware"]["pools"]}
    usd = sum(rented[pool["name"]] * (_price(pool) or 0.0) for pool in plan.spec["hardware"]["pools"])
    found = [check("devices rented add up", plan.cost.gpus_rented, "==", sum(rented.values()))]
    if plan.cost.usd_per_hour is not None:
        found.append(check("the hourly cost adds up", plan.cost.usd_per_hour, "==", usd))
    value = _value(plan, usd, rented)
    found.append(check("the certificate's value is that of the plan", plan.certificate.value, "==", value))
    return found


def _paid(plan: Plan, pool: dict[str, Any]) -> int:
    used = _used(plan, pool["name"])
    if not used:
        return 0
    return plan.cost.nodes.get(pool["name"], 0) * pool["gpus_per_node"] if pool["rent"] == "node" else used


def _used(plan: Plan, pool: str) -> int:
    return sum(group.gpus_by_pool.get(pool, 0) * group.replicas for group in plan.groups)


def _price(pool: dict[str, Any]) -> Any:
    """Dollars for an hour of a device; spot machines at their discount."""
    price, spot = pool["usd_per_gpu_hour"], pool.get("spot")
    return price if price is None or spot is None else float(price * (1.0 - spot["discount"]))


def _value(plan: Plan, usd: float, rented: dict[str, int]) -> float:
    quantity = plan.spec["objective"]["quantity"]
    if quantity == "cost":
        return usd
    if quantity == "gpus":
        return float(sum(rented.values()))
    if quantity == "traffic":
        return plan.certificate.multiple
    if quantity in ("energy", "carbon"):
        watts = _watts(plan, rented)
        return watts if quantity == "energy" else watts / 1000.0 * (plan.spec["hardware"]["carbon_g_per_kwh"] or 0.0)
    return sum(worth * plan.admitted.get(name, 1.0) for name, worth in plan.certificate.worth.items())


def _watts(plan: Plan, rented: dict[str, int]) -> float:
    """Watts of all groups as predicted, and of the devices that are rented and idle."""
    watts = sum(group.power_w or 0.0 for group in plan.predictions.groups)
    for pool in plan.spec["hardware"]["pools"]:
        idle = max(0, rented[pool["name"]] - _used(plan, pool["name"]))
        watts += idle * (plan.devices[pool["device"]].idle_power_w if pool["device"] in plan.devices else 0.0)
    return watts


def power_is_kept(plan: Plan) -> list[Check]:
    """Devices at work, each at its cap or at what it may draw, stay within the stated power."""
    limit = plan.spec["limits"].get("power_w")
    if limit is None:
        return []
    drawn = 0.0
    for pool in plan.spec["hardware"]["pools"]:
        most = plan.devices[pool["device"]].power_w
        drawn += _used(plan, pool["name"]) * min(most, pool.get("power_cap_w") or most)
    return [check("limits.power", drawn, "<=", limit)]


def capacity_suffices(plan: Plan) -> list[Check]:
    """The loads that replicas were priced at carry every class, without the nodes that may fail, too."""
    if not all(group.carries for group in plan.groups):
        return []  # a plan made before they were kept
    found = []
    failing = plan.spec["limits"].get("survive_node_failures", 0)
    for traffic in plan.spec["traffic"]:
        name = traffic["name"]
        share = plan.admitted.get(name, 1.0) - SHARE_TOLERANCE
        found.append(check(f"replicas carry {name}", _carried(plan, name, 0), ">=", share))
        if failing:
            law = f"replicas carry {name} when any {failing} node{'s' if failing > 1 else ''} fail"
            found.append(check(law, _carried(plan, name, failing), ">=", share))
    return found


def _carried(plan: Plan, name: str, failing: int) -> float:
    """Share of a class that is carried without the `failing` nodes that carry most of it, of either phase."""
    unified, prefill, decode = (_of_role(plan, name, role, failing) for role in ("unified", "prefill", "decode"))
    return unified + min(prefill, decode)


def _of_role(plan: Plan, name: str, role: str, failing: int) -> float:
    there = {pool["name"]: _availability(pool) for pool in plan.spec["hardware"]["pools"]}
    own = [group for group in plan.groups if group.role == role and name in group.carries]
    total = sum(_of_a_replica(group, name, there) * group.replicas for group in own)
    lost = sorted(_loss_by_node(own, name, there).values(), reverse=True)
    return total - sum(lost[:failing])


def _loss_by_node(groups: Iterable[ReplicaGroup], name: str, there: dict[str, float]) -> dict[tuple[str, int], float]:
    lost: dict[tuple[str, int], float] = {}
    for group in groups:
        for replica in group.placement:
            for place in {(pool, slot.node) for pool, slot in group.places(replica)}:
                lost[place] = lost.get(place, 0.0) + _of_a_replica(group, name, there)
    return lost


def _of_a_replica(group: ReplicaGroup, name: str, there: dict[str, float]) -> float:
    """Share of a class that one replica carries, in the time that all of its devices are there."""
    return group.carries[name] * math.prod(there.get(pool, 1.0) for pool in group.gpus_by_pool)


def _availability(pool: dict[str, Any]) -> float:
    spot = pool.get("spot")
    if spot is None:
        return 1.0
    return float(1.0 / (1.0 + spot["interruptions_per_hour"] * spot.get("recovery_s", 600.0) / 3600.0))


def bound_is_a_bound(plan: Plan) -> list[Check]:
    """No plan is better than the bound."""
    certificate = plan.certificate
    if plan.spec["objective"]["sense"] == "maximise":
        return [check("the bound is not below the value", certificate.bound, ">=", certificate.value)]
    return [check("the bound is not above the value", certificate.bound, "<=", certificate.value)]
