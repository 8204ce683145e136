"""Energy of a simulated run, by the power model that plans are made with. Predicted: no watt of it is measured."""

from __future__ import annotations

from typing import Any

from planner.cost.energy import grams_co2, grams_co2_per_million_tokens
from planner.cost.unlike_stages import StageDevice
from planner.facts import in_pool
from planner.group_power import group_power_w
from planner.simulate import FleetResult, Workload
from planner.stage_devices import stage_devices
from specs.architecture import load_architecture
from specs.deployment import DeploymentSpec
from specs.plan import Plan, ReplicaGroup
from specs.profile import PowerProfile


def energy_summary(plan: Plan, result: FleetResult, workload: Workload) -> dict[str, Any] | None:
    """Mean watts over the arrival window, joules of it and per token; grams of CO2 where an intensity is declared.

    None where the plan keeps no power profile of one of its devices. Devices only; links of handed-over caches are not
    in it.
    """
    spec = DeploymentSpec.model_validate(plan.spec)
    used = {stage.device: _profile(plan, spec, stage.pool) for group in plan.groups for stage in group.machines}
    profiles = [profile for profile in used.values() if profile is not None]
    if len(profiles) < len(used) or result.horizon_s <= 0:
        return None
    watts = [_group_w(plan, spec, index, result, workload) for index in range(len(plan.groups))]
    power_w = sum(watts)
    output_per_s = sum(load.output_tokens_per_s for load in result.groups)
    every_per_s = output_per_s + sum(load.prompt_tokens_per_s for load in result.groups)
    intensity = spec.hardware.carbon_g_per_kwh
    joules = power_w * result.horizon_s
    return {
        "basis": "predicted",
        "power_w": power_w,
        "joules": joules,
        "joules_per_output_token": power_w / output_per_s if output_per_s else None,
        "joules_per_token": power_w / every_per_s if every_per_s else None,
        "grams_co2": None if intensity is None else float(grams_co2(joules, intensity)),
        "grams_co2_per_million_output_tokens": None
        if intensity is None
        else grams_co2_per_million_tokens(power_w, output_per_s, intensity),
        "groups": [{"group": group.id, "power_w": group_w} for group, group_w in zip(plan.groups, watts, strict=True)],
        "notes": [
            "devices only: hosts, switches and cooling are not in it",
            *map(_source, profiles),
            *_unseen(plan, result),
        ],
    }


def _profile(plan: Plan, spec: DeploymentSpec, pool: str) -> PowerProfile | None:
    return plan.power.get(spec.hardware.pool(pool).device)


def _group_w(plan: Plan, spec: DeploymentSpec, index: int, result: FleetResult, workload: Workload) -> float:
    group = plan.groups[index]
    pool = spec.hardware.pool(group.pool)
    return group_power_w(
        result,
        workload,
        index,
        load_architecture(plan.architectures[group.model]),
        group.layout,
        group.weights_dtype,
        group.cache.kv_dtype,
        in_pool(plan.devices[pool.device], pool, spec.hardware),
        plan.profiles[pool.device],
        plan.power[pool.device],
        pool.power_cap_w,
        group.scheduling.speculation,
        _stages(plan, spec, group),
    )


def _stages(plan: Plan, spec: DeploymentSpec, group: ReplicaGroup) -> list[tuple[StageDevice, PowerProfile]]:
    """What each stage stands on, of a group that has them in several pools."""
    pools = [spec.hardware.pool(stage.pool) for stage in group.stages]
    ranks = group.layout.tensor_parallel * group.layout.attention_data_parallel
    devices = stage_devices(pools, ranks, spec.hardware, plan.devices, plan.profiles, plan.power)
    return [(stage, plan.power[pool.device]) for stage, pool in zip(devices, pools, strict=True)]


def _source(power: PowerProfile) -> str:
    if power.confidence == "borrowed":
        return f"{power.device}: shares of its power range are borrowed from {power.relative_of}"
    return f"{power.device}: shares of its power range are fitted to measured watts"


def _unseen(plan: Plan, result: FleetResult) -> list[str]:
    notes = []
    if any(load.preemptions > load.swaps or load.lost for load in result.groups):
        notes.append("what preempted or lost requests computed anew is not in it")
    if any(group.scheduling.speculation for group in plan.groups):
        notes.append("draft tokens, and what makes them, are not in it")
    return notes
