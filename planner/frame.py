"""The master programme of a spec before anything is enumerated: pools, classes, limits, what is optimised."""

from __future__ import annotations

from planner.candidates.screens import decisive
from planner.facts import Facts
from planner.optimize.programme import Pool, Programme
from planner.optimize.whole_plan import availability_of
from planner.simulate import Workload, slos_of
from specs.deployment import DeploymentSpec, PoolSpec
from specs.errors import InputError


def frame(spec: DeploymentSpec, facts: Facts, declared: Workload) -> Programme:
    """The master programme of the spec without columns and families. `declared`: its traffic as it was drawn.

    Raises `InputError` where the objective needs something that is not declared.
    """
    quantity = spec.objective.quantity
    intensity = spec.hardware.carbon_g_per_kwh
    if quantity == "carbon" and intensity is None:
        raise InputError(
            "grams of CO2 follow from the carbon intensity of the electricity, which is not declared",
            field="objective",
            expected="hardware.carbon: 350 g/kWh, or minimise energy",
        )
    there = availability_of(spec.hardware)
    return Programme(
        pools=tuple(_pool(pool, facts, there.get(pool.name, 1.0)) for pool in spec.hardware.pools),
        columns=(),
        families=(),
        classes=tuple(traffic.name for traffic in spec.traffic),
        quantity=quantity,
        allowed_misses={name: 1.0 - decisive(slo).share for name, slo in slos_of(spec).items()},
        budget=spec.limits.budget_usd_per_hour,
        model_gpus=dict(spec.limits.gpus),
        model_replicas={name: choices.replicas for name, choices in spec.choices.models.items() if choices.replicas},
        power_w=spec.limits.power_w,
        survive=spec.limits.survive_node_failures,
        worth=_worth(quantity, declared),
        per_watt=intensity / 1000.0 if quantity == "carbon" and intensity is not None else 1.0,
    )


def _pool(pool: PoolSpec, facts: Facts, availability: float) -> Pool:
    device = facts.device_of(pool)
    return Pool(
        name=pool.name,
        devices=_whole(pool),
        node_devices=min(pool.gpus_per_node, pool.count),
        price=pool.usd_per_hour,
        rent=pool.rent,
        idle_watts=device.idle_power_w,
        most_watts=min(device.power_w, pool.power_cap_w or device.power_w),
        availability=availability,
    )


def _whole(pool: PoolSpec) -> int:
    """Devices in whole nodes: a last, partly filled node counts only where devices are rented one by one."""
    return pool.count if pool.rent == "gpu" else pool.count // pool.gpus_per_node * pool.gpus_per_node


def _worth(quantity: str, declared: Workload) -> dict[str, float]:
    """What serving all of a class counts: its output tokens/s, or its requests/s. Empty where neither is maximised."""
    if quantity not in ("throughput", "goodput"):
        return {}
    found = {}
    for name in declared.classes:
        own = declared.of_class(name)
        units = declared.output_tokens[own].sum() if quantity == "throughput" else own.sum()
        found[name] = float(units) / declared.horizon_s
    return found
